"""A service for `waypost register ... -- python3 service.py ADDRESS PORT DIRECTORY`.

It listens once DIRECTORY/listen is there, answers with its address, /healthz with 200 once DIRECTORY/healthy is there,
/hold once DIRECTORY/release is there, /slow after 300 ms, and ends with code 5 when asked for /exit. It prints the signals it gets; of
SIGTERM, SIGINT and SIGQUIT it ends with code 7 once DIRECTORY/end is there, and prints how many requests it cut off.
It never outlives its standard input.
"""

import http.server
import os
import signal
import sys
import threading
import time

running = set()
address, port, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def there(name):
    return os.path.exists(os.path.join(directory, name))


def await_file(name):
    while not there(name):
        time.sleep(0.01)


def say(words):
    os.write(1, (words + "\n").encode())


def guard():
    while os.read(0, 1):
        pass
    os._exit(99)


def note(number, _frame):
    say(signal.Signals(number).name)


def end(number, _frame):
    note(number, None)

    def leave():
        await_file("end")
        say(f"cut off: {len(running)}")
        os._exit(7)

    threading.Thread(target=leave).start()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        running.add(self)
        self.answer()
        running.discard(self)

    do_POST = do_GET

    def answer(self):
        if self.path == "/exit":
            os._exit(5)
        if self.path == "/hold":
            say("held")
            await_file("release")
        if self.path == "/slow":
            time.sleep(0.3)
        if self.path == "/healthz":
            say("Host: " + self.headers["Host"])
        well = self.path != "/healthz" or there("healthy")
        body = f"{address}:{port}".encode()
        head = f"HTTP/1.1 {200 if well else 503} Said\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)
        if self.path == "/hold":
            say("let go")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


for name in ("HUP", "USR1", "USR2"):
    signal.signal(getattr(signal, "SIG" + name), note)
for name in ("TERM", "INT", "QUIT"):
    signal.signal(getattr(signal, "SIG" + name), end)
threading.Thread(target=guard, daemon=True).start()
say(f"pid {os.getpid()}")
await_file("listen")
server = Server((address, port), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    signal.pause()
