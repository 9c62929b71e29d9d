"""A gRPC server of another make: the service of tests/support/grpc.rs. It prints `port N`, then `waiting COUNT` for each call
that is not going to be answered, and `cancelled COUNT` for each of them that was given up.
"""

import itertools
import time
from concurrent import futures

import grpc

waiting, cancelled = itertools.count(1), itertools.count(1)


def announce(context):
    """Before anything is said: a call that is given up may not be gone on with."""
    print("waiting", next(waiting))
    tell = lambda: print("cancelled", next(cancelled))
    if not context.add_callback(tell):
        tell()


def wait(context):
    while context.is_active():
        time.sleep(0.01)


def unary(message, context):
    if message == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nein, 100 % grün")
    if message == b"wait":
        announce(context)
        wait(context)
    asked = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
    context.send_initial_metadata([(key, value) for key, value in asked if not key.startswith("x-forwarded")])
    return message


def stream(messages, context):
    for message in messages:
        if message == b"many":
            yield from (f"number {number}".encode() for number in range(100))
        elif message == b"fail":
            context.abort(grpc.StatusCode.DATA_LOSS, "broken")
        elif message == b"wait":
            announce(context)
            yield b"waiting"
            wait(context)
            return
        else:
            yield message


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Stream": grpc.stream_stream_rpc_method_handler(stream),
}
options = [("grpc.max_receive_message_length", -1)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=options)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("port", port)
server.wait_for_termination()
