"""What the measuring scripts share: processes pinned to cores, and what the kernel says of them.

The server runs on the first core, the load and Redis on the second. Every process takes free ports and is ended by
its pid.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECRET = "a-secret-for-benchmarks-of-32-bytes-or-more"
KEY = "benchmark"
CORES = sorted(os.sched_getaffinity(0))
# On a single core there is nothing to keep apart, and little to be measured.
SERVER, CLIENT = ([["taskset", "-c", str(core)] for core in CORES[:2]] if len(CORES) > 1
                  else ([], []))


def raise_files():
    """As many open files as the system allows; the limit that came of it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, process=None, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process and process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")


def wait_ready(port, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.02)
    raise RuntimeError(f"the gateway on port {port} is not ready")


def family(pid):
    """The processes below `pid`, itself included."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as f:
                    todo += [int(p) for p in f.read().split()]
    return found


def cpu(pids):
    """Seconds of processor time so far."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def pss(pids):
    """Proportional set size in bytes."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            total += sum(int(line.split()[1]) for line in f if line.startswith("Pss:"))
    return total * 1024


class Process:
    """A program in a session of its own, with a log."""

    def __init__(self, command, log, env=None):
        with open(log, "a") as out:
            self.process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=out,
                                            stderr=out, start_new_session=True)

    def pids(self):
        return family(self.process.pid)

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Redis(Process):
    """A Redis that keeps nothing on disk."""

    def __init__(self, out):
        self.port = free_port()
        super().__init__(CLIENT + ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1",
                                   "--save", "", "--appendonly", "no", "--dir", out],
                         os.path.join(out, "redis.log"))
        wait_for(self.port, self.process)
        self.url = f"redis://127.0.0.1:{self.port}"


class Belfry(Process):
    """A gateway as it ships: the production profile, with heartbeats, metrics, logs at info, kept
    events and its default transport. `redis` is a URL; without one it runs in memory."""

    def __init__(self, binary, out, redis=None, workers=1, ports=None, name="belfry", **settings):
        self.public, self.internal = ports or (free_port(), free_port())
        env = {
            "BELFRY_PROFILE": "production",
            "BELFRY__PUBLIC__BIND": f"127.0.0.1:{self.public}",
            "BELFRY__INTERNAL__BIND": f"127.0.0.1:{self.internal}",
            "BELFRY__PUBLIC__WORKERS": str(workers),
            "BELFRY__AUTH__JWT__SECRET": SECRET,
            "BELFRY__API__KEYS": f"bench:{hashlib.sha256(KEY.encode()).hexdigest()}",
        }
        if redis:
            env["BELFRY__REDIS__URL"] = redis
        env.update({f"BELFRY__{key.upper()}": value for key, value in settings.items()})
        super().__init__(SERVER + [binary, "serve"], os.path.join(out, f"{name}.log"), env)
        wait_for(self.public, self.process)
        wait_ready(self.internal)

    def metric(self, name):
        """The sum over the series of this metric."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.internal}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)

    def limit(self):
        """Connections it takes: `limits.connections`, or fewer where open files are."""
        return int(self.metric("belfry_connections_limit"))

    def bench(self, binary, *args, timeout=600):
        """Runs `belfry bench` from the generator's core against it; the run as JSON, or None. Lost,
        repeated and reordered events are in it; whether it counts is for the caller to say."""
        env = {**os.environ, "BELFRY_API_KEY": KEY, "BELFRY_URL": f"http://127.0.0.1:{self.internal}",
               "BELFRY__AUTH__JWT__SECRET": SECRET}
        pids = [arg for pid in self.pids() for arg in ("--pid", str(pid))]
        command = CLIENT + [binary, "bench", "--json", "--url", f"ws://127.0.0.1:{self.public}",
                            *pids, *args]
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout,
                             check=False)
        try:
            return json.loads(run.stdout)["runs"][0]
        except ValueError:
            print(f"belfry bench {' '.join(args)}: {run.stderr.strip()[-400:]}", file=sys.stderr)
            return None


def token(user, secret=SECRET):
    """A JWT by HS256, good for a day."""
    def part(raw):
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    claims = {"sub": user, "exp": int(time.time()) + 86_400}
    body = part(b'{"alg":"HS256","typ":"JWT"}') + "." + part(json.dumps(claims).encode())
    return body + "." + part(hmac.new(secret.encode(), body.encode(), hashlib.sha256).digest())


class Idlers:
    """Connections that do nothing but live: WebSockets or SSE streams, opened one after another."""

    # Masked with zeros: a Text frame with {"type":"pong"}, and a Close 1000.
    PONG = b"\x81\x8f\0\0\0\0" + b'{"type":"pong"}'
    CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"

    def __init__(self, port, sse=False):
        self.port, self.sse, self.open, self.made = port, sse, [], 0
        self.touched = time.monotonic()

    def grow(self, count):
        while len(self.open) < count:
            # Well within a heartbeat, however long the opening takes.
            if time.monotonic() - self.touched > 8:
                self.touch()
            path = "/sse/notifications" if self.sse else "/ws/notifications"
            lines = [f"GET {path} HTTP/1.1", "host: bench",
                     f"authorization: Bearer {token(f'idle-{self.made}')}"]
            if not self.sse:
                lines += ["upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13",
                          "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="]
            self.made += 1
            link = socket.create_connection(("127.0.0.1", self.port), 10)
            link.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            text = b""
            while b"belfry.welcome" not in text:
                more = link.recv(8192)
                if not more:
                    link.close()
                    # The limit of handshakes each second is on, as it ships.
                    if b" 429 " in text[:20] or b" 503 " in text[:20]:
                        time.sleep(0.2)
                        break
                    raise RuntimeError(f"no welcome: {text[:200]}")
                text += more
            else:
                link.setblocking(False)
                self.open.append(link)

    def touch(self):
        """Shows life, and takes what came. Those that ended are no longer counted."""
        alive = []
        for link in self.open:
            try:
                if not self.sse:
                    link.send(self.PONG)
                while True:
                    if not link.recv(8192):
                        link.close()
                        break
            except BlockingIOError:
                alive.append(link)
            except OSError:
                link.close()
        self.open, self.touched = alive, time.monotonic()

    def shrink(self, count):
        leaving, self.open = self.open[count:], self.open[:count]
        for link in leaving:
            with contextlib.suppress(OSError):
                if not self.sse:
                    link.send(self.CLOSE)
                link.shutdown(socket.SHUT_WR)
        for link in leaving:
            with contextlib.suppress(OSError):
                link.settimeout(5)
                while link.recv(8192):
                    pass
            link.close()
