"""websocket_server.py without compression, over HTTP/2 (RFC 8441): the HTTP/2 is that of `h2`, the WebSocket that of
`websockets`. It prints `port N`, then how each WebSocket ends: `closed CODE REASON`, or `reset`.
"""

import asyncio
import hashlib

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes, Settings
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side, State

LARGE = 16 << 20


class Socket:
    """One WebSocket on a stream."""

    def __init__(self, path):
        self.path = path
        self.frames = Protocol(Side.SERVER, state=State.OPEN, max_size=None)
        self.digest = None
        self.unsent = bytearray()
        self.ends = False
        match path:
            case "/ping":
                self.frames.send_ping(b"are you there")
            case "/close":
                self.frames.send_close(4002, "enough")
            case "/flood":
                self.frames.send_binary(bytes(range(256)) * (LARGE // 256))
                self.digest = hashlib.sha256()

    def take(self, data):
        """False where the stream is to be reset."""
        self.frames.receive_data(data)
        for frame in self.frames.events_received():
            match frame.opcode:
                case Opcode.PONG:
                    self.frames.send_text(b"you are")
                case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                    if self.path == "/break":
                        return False
                    if self.digest:
                        self.digest.update(frame.data)
                        if frame.fin:
                            self.frames.send_text(self.digest.hexdigest().encode())
                            self.digest = None
                        continue
                    # Fragment by fragment.
                    send = {Opcode.TEXT: self.frames.send_text, Opcode.CONT: self.frames.send_continuation}
                    send.get(frame.opcode, self.frames.send_binary)(bytes(frame.data), fin=frame.fin)
        return True

    def end(self):
        self.frames.receive_eof()

    def due(self):
        for data in self.frames.data_to_send():
            self.unsent += data
            # What is empty is the end (`websockets` says so).
            self.ends |= not data
        return self.unsent


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.sockets = {}
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        settings = {SettingCodes.ENABLE_CONNECT_PROTOCOL: 1, SettingCodes.MAX_CONCURRENT_STREAMS: 100}
        self.http2.local_settings = Settings(client=False, initial_values=settings)
        self.http2.initiate_connection()
        self.flush()

    def data_received(self, data):
        for event in self.http2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    self.open(event.stream_id, dict(event.headers))
                case h2.events.DataReceived():
                    self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    socket = self.sockets.get(event.stream_id)
                    if socket and not socket.take(event.data):
                        self.http2.reset_stream(event.stream_id)
                        self.forget(event.stream_id)
                case h2.events.StreamEnded():
                    if socket := self.sockets.get(event.stream_id):
                        socket.end()
                case h2.events.StreamReset():
                    if event.stream_id in self.sockets:
                        print("reset")
                        self.forget(event.stream_id)
        self.flush()

    def open(self, stream, head):
        assert (head[":method"], head.get(":protocol")) == ("CONNECT", "websocket"), head
        assert head["sec-websocket-version"] == "13" and "sec-websocket-key" not in head, head
        offered = [name.strip() for name in head.get("sec-websocket-protocol", "").split(",")]
        chosen = next((name for name in ["chat.v2", "chat.v1"] if name in offered), None)
        self.http2.send_headers(stream, [(":status", "200")] + [("sec-websocket-protocol", chosen)] * bool(chosen))
        self.sockets[stream] = Socket(head[":path"])

    def forget(self, stream):
        frames = self.sockets.pop(stream).frames
        if frames.close_rcvd:
            print("closed", frames.close_rcvd.code, frames.close_rcvd.reason)

    def flush(self):
        for stream, socket in list(self.sockets.items()):
            unsent = socket.due()
            while unsent and (room := self.room(stream)):
                self.http2.send_data(stream, bytes(unsent[:room]))
                del unsent[:room]
            if socket.ends and not unsent:
                self.http2.end_stream(stream)
                self.forget(stream)
        self.transport.write(self.http2.data_to_send())

    def room(self, stream):
        return min(self.http2.local_flow_control_window(stream), self.http2.max_outbound_frame_size)


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0)
    print("port", server.sockets[0].getsockname()[1], flush=True)
    await loop.create_future()


asyncio.run(main())
