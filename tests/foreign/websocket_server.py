"""A WebSocket server of another make. It prints `port N`, then how each connection ends: `closed CODE REASON`.

/echo sends back what comes, fragment by fragment; /ping pings, waits for the pong, and says so; /close closes with
4002; /break breaks off without a word; /flood sends 16 MiB in one message.
"""

import asyncio
import hashlib
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

LARGE = 16 << 20


async def serve_one(socket):
    path = socket.request.path
    try:
        if path == "/ping":
            await (await socket.ping(b"are you there"))
            await socket.send("you are")
        elif path == "/close":
            await socket.close(4002, "enough")
        elif path == "/break":
            await socket.recv()
            socket.transport.abort()
        elif path == "/flood":
            await socket.send(bytes(range(256)) * (LARGE // 256))
            digest = hashlib.sha256(await socket.recv()).hexdigest()
            await socket.send(digest)
        while True:
            fragments = [fragment async for fragment in socket.recv_streaming()]
            # A list goes out in as many fragments, a single piece in one.
            await socket.send(fragments if len(fragments) > 1 else fragments[0])
    except ConnectionClosed as closed:
        told = closed.rcvd
        print("closed", *((told.code, told.reason) if told else (1006, "")))


def favourite(_socket, offered):
    return next((known for known in ["chat.v2", "chat.v1"] if known in offered), None)


async def main():
    compression = None if "plain" in sys.argv else "deflate"
    options = {"select_subprotocol": favourite, "compression": compression, "max_size": None}
    async with serve(serve_one, "127.0.0.1", 0, **options) as server:
        print("port", server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
