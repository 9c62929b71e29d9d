"""A WebSocket over HTTP/2 (RFC 8441): `websocket_over_http2.py PORT`. The HTTP/2 is that of `h2`, the WebSocket that of
`websockets`. It talks to websocket_server.py's /echo and fails where an echo is not what was said.
"""

import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

wire = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=15)
http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
http2.initiate_connection()
stream, head, came = None, None, StreamReader()


def step():
    """Sends what is due, and takes what comes."""
    global head
    wire.sendall(http2.data_to_send())
    data = wire.recv(65536)
    assert data, "the connection ended"
    for event in http2.receive_data(data):
        match event:
            case h2.events.ResponseReceived():
                head = dict(event.headers)
            case h2.events.DataReceived():
                came.feed_data(event.data)
                if event.flow_controlled_length:
                    http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                came.feed_eof()
            case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                raise AssertionError(event)
    wire.sendall(http2.data_to_send())


def say(frame):
    data = frame.serialize(mask=True, extensions=extensions)
    while data:
        room = min(http2.local_flow_control_window(stream), http2.max_outbound_frame_size)
        if room == 0:
            step()
            continue
        http2.send_data(stream, data[:room])
        data = data[room:]
        wire.sendall(http2.data_to_send())


def hear():
    parsing = Frame.parse(came.read_exact, mask=False, extensions=extensions)
    while True:
        try:
            next(parsing)
        except StopIteration as parsed:
            return parsed.value
        step()


while not http2.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL):
    step()
stream = http2.get_next_available_stream_id()
http2.send_headers(stream, [
    (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/echo"),
    (":authority", "a.test"), ("sec-websocket-version", "13"), ("sec-websocket-protocol", "chat.v1, chat.v2"),
    ("sec-websocket-extensions", "permessage-deflate; client_no_context_takeover; server_no_context_takeover"),
])
while head is None:
    step()
assert head[":status"] == "200", head
assert head["sec-websocket-protocol"] == "chat.v2", head
assert head["sec-websocket-extensions"].startswith("permessage-deflate"), head
assert "sec-websocket-accept" not in head and "upgrade" not in head, head
extensions = [PerMessageDeflate(True, True, 15, 15)]

for opcode, text in [(Opcode.TEXT, "grüße".encode()), (Opcode.BINARY, bytes(range(256)) * 4000), (Opcode.TEXT, b"")]:
    say(Frame(opcode, text))
    heard = hear()
    assert (heard.opcode, bytes(heard.data)) == (opcode, text), heard
say(Frame(Opcode.PING, b"are you there"))
heard = hear()
assert (heard.opcode, bytes(heard.data)) == (Opcode.PONG, b"are you there"), heard
say(Frame(Opcode.CLOSE, Close(4001, "bye").serialize()))
heard = hear()
assert heard.opcode == Opcode.CLOSE, heard
close = Close.parse(heard.data)
print("closed", close.code, close.reason)
