"""A gRPC client of another make: `grpc_client.py PORT [CA]`. It calls the service of tests/support/grpc.rs at a.test, through
whatever listens on that port, over TLS if it is told whom to trust, and fails where anything is not as it would be
without that. Of its calls two are given up.
"""

import queue
import sys

import grpc

port, ca = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
options = [("grpc.default_authority", "a.test"), ("grpc.max_receive_message_length", -1)]
if ca:
    trusted = grpc.ssl_channel_credentials(open(ca, "rb").read())
    options.append(("grpc.ssl_target_name_override", "a.test"))
    channel = grpc.secure_channel(f"127.0.0.1:{port}", trusted, options)
else:
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
unary = channel.unary_unary("/test.Echo/Unary")
stream = channel.stream_stream("/test.Echo/Stream")


def fails(call, code, message=None):
    try:
        answer = call()
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert message in (None, error.details()), error
    else:
        raise AssertionError(answer)


def calls():
    sent = (("x-asked", "yes"), ("x-raw-bin", b"\x00\xff\x01"))
    answer, call = unary.with_call(b"hello", metadata=sent, timeout=15)
    assert answer == b"hello"
    told = dict(call.initial_metadata())
    assert all(told[key] == value for key, value in sent), told
    large = bytes(range(256)) * (8 << 12)
    assert unary(large, timeout=15) == large


def streams():
    said = queue.Queue()
    heard = stream(iter(said.get, None), timeout=15)
    for number in range(20):
        message = f"message {number}".encode()
        said.put(message)
        assert next(heard) == message
    said.put(b"many")
    assert [next(heard) for _ in range(100)] == [f"number {number}".encode() for number in range(100)]
    said.put(None)
    assert list(heard) == [] and heard.code() == grpc.StatusCode.OK
    # All is said before anything is heard.
    heard = stream(iter([b"x" * 1000] * 500), timeout=15)
    assert len(list(heard)) == 500


def errors():
    fails(lambda: unary(b"fail", timeout=15), grpc.StatusCode.FAILED_PRECONDITION, "nein, 100 % grün")
    heard = stream(iter([b"one", b"fail"]), timeout=15)
    assert next(heard) == b"one"
    fails(lambda: next(heard), grpc.StatusCode.DATA_LOSS, "broken")


def ends():
    fails(lambda: unary(b"wait", timeout=1), grpc.StatusCode.DEADLINE_EXCEEDED)
    heard = stream(iter([b"one", b"wait"]), timeout=15)
    assert [next(heard), next(heard)] == [b"one", b"waiting"]
    heard.cancel()
    fails(lambda: next(heard), grpc.StatusCode.CANCELLED)


for part in [calls, streams, errors, ends]:
    part()
    print(part.__name__, "ok")
