"""A WebSocket client of another make: `websocket_client.py PORT deflate|plain [CA]`. It talks to a.test, served by
websocket_server.py, through whatever listens on that port, over TLS if it is told whom to trust, and fails where
anything is not as it would be without that.
"""

import asyncio
import hashlib
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

PORT, COMPRESSION = int(sys.argv[1]), sys.argv[2]
TLS = ssl.create_default_context(cafile=sys.argv[3]) if len(sys.argv) > 3 else None
LARGE = 16 << 20


def open_socket(path, **options):
    url = ("wss" if TLS else "ws") + "://a.test" + path
    compression = "deflate" if COMPRESSION == "deflate" else None
    options = {"compression": compression, "max_size": None, "ssl": TLS, "proxy": None} | options
    return connect(url, host="127.0.0.1", port=PORT, **options)


async def messages():
    async with open_socket("/echo") as socket:
        for message in ["", "grüße", b"", b"\x00\xff\r\n\r\n", "x" * 70_000, bytes(range(256)) * 1000]:
            await socket.send(message)
            assert await socket.recv() == message
        for fragments in [[b"a", b"", b"ccc"], ["ein", "zwei", "drei"], [b"y" * 50_000] * 20]:
            await socket.send(fragments)
            came = [fragment async for fragment in socket.recv_streaming()]
            # None were joined, none cut: the last is an empty one of the library's, which ends what it can't foresee.
            assert [f for f in came if f] == [f for f in fragments if f], [len(f) for f in came]


async def large():
    async with open_socket("/echo") as socket:
        message = hashlib.shake_128(b"seed").digest(LARGE)
        sending = asyncio.create_task(socket.send(message))
        assert await socket.recv() == message
        await sending
    async with open_socket("/flood") as socket:
        message = await socket.recv()
        assert message == bytes(range(256)) * (LARGE // 256)
        await socket.send(message)
        assert await socket.recv() == hashlib.sha256(message).hexdigest()


async def pings():
    async with open_socket("/ping") as socket:
        assert await socket.recv() == "you are"
        # Between the fragments of a message too (RFC 6455 section 5.4).
        async def fragments():
            yield b"one"
            await (await socket.ping(b"in between"))
            yield b"two"

        await socket.send(fragments())
        assert await socket.recv() == b"onetwo"


async def negotiation():
    for offered, chosen in [(None, None), (["chat.v1"], "chat.v1"), (["chat.v1", "chat.v2"], "chat.v2")]:
        async with open_socket("/echo", subprotocols=offered) as socket:
            assert socket.subprotocol == chosen, socket.subprotocol
            extensions = [extension.name for extension in socket.protocol.extensions]
            assert extensions == (["permessage-deflate"] if COMPRESSION == "deflate" else []), extensions
            await socket.send("z" * 100_000)
            assert await socket.recv() == "z" * 100_000


async def closes():
    async with open_socket("/echo") as socket:
        await socket.close(4001, "bye")
        assert socket.protocol.close_rcvd == Close(4001, "bye")
    for path, close in [("/close", Close(4002, "enough")), ("/break", None)]:
        async with open_socket(path) as socket:
            try:
                if path == "/break":
                    await socket.send("go")
                await socket.recv()
                raise AssertionError("it is closed")
            except ConnectionClosedError as closed:
                assert closed.rcvd == close, closed


async def main():
    for part in [messages, large, pings, negotiation, closes]:
        await part()
        print(part.__name__, "ok")


asyncio.run(main())
