"""The processes of a measurement: started in one temporary directory, ended with it, and asked what they used.

For the scripts beside it. Needs Python alone; the programs it starts are the caller's business.
"""

import base64, http.client, json, os, platform, re, shutil, socket, subprocess, tempfile, time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PORTS = iter(range(10_000, 32_768))


class Failed(Exception):
    """The measurement can't go on; says why."""


class Process:
    """A running program, its output in a file."""

    def __init__(self, lab, name, argv):
        self.name, self.log = name, lab.dir / f"{name}.log"
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen([str(part) for part in argv], stdout=log, stderr=log, cwd=lab.dir)

    def cpu(self):
        """Seconds of CPU time used so far, by all its threads, ended ones too."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def mebibytes(self, field):
        """`VmHWM` (peak) or `VmRSS` (now)."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1]) / 1024

    def check(self):
        if self.child.poll() is not None:
            raise Failed(f"{self.name} ended with {self.child.returncode}:\n{self.log.read_text(errors='replace')[-2000:]}")

    def signal(self, signal):
        self.child.send_signal(signal)

    def stop(self, patience=30):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(patience)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


class Lab:
    """A temporary directory and the processes that live in it."""

    def __init__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="waypost-lab-"))
        self.dir.chmod(0o755)  # nginx's worker is another user
        self.running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.stop(patience=5)
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self, name, *argv):
        process = Process(self, name, argv)
        self.running.append(process)
        return process

    def etcd(self, name="etcd", data=None, port=None):
        """An etcd that takes transactions of 1,000 puts. Given the data and the port of an earlier one, goes on with them."""
        port, data = port or free_port(), data or self.dir / f"{name}-data"
        client = f"http://127.0.0.1:{port}"
        peer = f"http://127.0.0.1:{free_port()}"
        process = self.start(
            name, "etcd", "--data-dir", data, "--log-level", "error",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--max-txn-ops", 1024, "--quota-backend-bytes", 8 << 30)
        process.port, process.data = port, data
        await_port(process, port)
        return process

    def origin(self):
        """An nginx that answers 64 bytes to everything."""
        port = free_port()
        configuration = self.dir / "origin.conf"
        configuration.write_text(
            f"daemon off; worker_processes 1; error_log {self.dir}/origin.err; pid {self.dir}/origin.pid;"
            "events { worker_connections 4096; }"
            "http { access_log off; keepalive_requests 100000000; keepalive_timeout 1h; server {"
            f"listen 127.0.0.1:{port}; location / {{ return 200 '{'x' * 64}'; }} }} }}")
        process = self.start("origin", "nginx", "-c", configuration)
        process.address = f"127.0.0.1:{port}"
        await_port(process, port)
        return process

    def waypost(self, binary, etcd_port, *flags, name="waypost"):
        port, admin = free_port(), free_port()
        process = self.start(
            name, binary, "serve", "--etcd", f"http://127.0.0.1:{etcd_port}", "--workers", 1,
            "--listen", f"http://127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}",
            "--drain-delay", "0s", "--log", "warn", *flags)
        process.port, process.admin = port, admin
        return process


class Gateway:
    """etcd's JSON gateway over one kept connection."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def call(self, method, body):
        self.connection.request("POST", f"/v3/{method}", json.dumps(body))
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise Failed(f"etcd: {method}: {answer.status} {text[:300]!r}")
        return json.loads(text)

    def put(self, pairs):
        """All of them in one transaction, so in one revision."""
        puts = [{"requestPut": {"key": encoded(key), "value": encoded(value)}} for key, value in pairs]
        return int(self.call("kv/txn", {"success": puts})["header"]["revision"])

    def compact(self, revision):
        self.call("kv/compaction", {"revision": revision, "physical": True})


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def free_port():
    """Below those that the kernel gives to outgoing connections, of which a fleet has many."""
    for port in PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass
    raise Failed("no free port between 10000 and 32767")


def await_port(process, port, seconds=60):
    until(lambda: connects(port), seconds, f"{process.name} to listen", process)


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def until(condition, seconds, what, *processes, pause=0.02):
    """Returns the first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for process in processes:
            process.check()
        if answer := condition():
            return answer
        time.sleep(pause)
    raise Failed(f"waited {seconds} s for {what}")


def get(port, path, host="localhost"):
    """Status and body; `(0, b"")` where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def metric(port, name):
    """The sum of a metric's samples, from `/metrics`."""
    text = get(port, "/metrics")[1].decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def machine(*versions):
    """Which machine, and the first line that each of these commands prints."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    lines = {"cpu": f"{os.cpu_count()} x {model[1] if model else platform.machine()}", "kernel": platform.release()}
    for command in versions:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines[Path(command[0]).name] = ran.stdout.strip().splitlines()[0]
    return lines
