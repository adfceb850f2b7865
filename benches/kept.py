#!/usr/bin/env python3
"""What keeping an event costs: events a second into one Redis, beside redis-benchmark with the same
script; bytes in Redis; what a client that comes back costs.

Needs `redis-server` and `redis-benchmark`, nothing else. Belfry runs on core 0, Redis and the load on
core 1, unless there are more.

    cargo build --release
    benches/kept.py [--repeat 5]
"""

import argparse
import base64
import hashlib
import hmac
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KEY, SECRET = "bench-key", "bench-secret-bench-secret-bench-secret"
DATA = "x" * 200
ITEMS = 500
# Events that Belfry joins in one call of the script at most.
CALL = 32


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pinned(core, command, **kw):
    return subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, **kw)


def cli(port, *args):
    return subprocess.run(["redis-cli", "-p", str(port), *args], capture_output=True, text=True,
                          check=True).stdout.strip()


def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def token(user):
    enc = lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()  # noqa: E731
    body = enc(b'{"alg":"HS256","typ":"JWT"}') + "." + enc(json.dumps(
        {"sub": user, "exp": int(time.time()) + 3600}).encode())
    return body + "." + enc(hmac.new(SECRET.encode(), body.encode(), hashlib.sha256).digest())


def script_rate(port, events):
    """Events a second by the script alone: so many in a call, 64 in a pipeline, 4 connections."""
    sha = cli(port, "SCRIPT", "LOAD", open(f"{ROOT}/src/bus/redis/publish.lua").read())
    keys = ["ws:user:bench", "ws:last:user:bench", "ws:user:bench", "ws:seats:bench"]
    event = ["", '{"belfry":{"v":1', '"type":"t","data":"%s"}' % DATA, "u", "kept", "", "", "1"]
    common = ["300", "1048576", "3600000", "2592000000", "300000", "1", "replica"]
    out = subprocess.run(
        ["taskset", "-c", "1", "redis-benchmark", "-p", str(port), "-n", str(200000 // events), "-c",
         "4", "-P", str(64 // events), "--csv", "EVALSHA", sha, str(1 + len(keys) * events),
         "ws:epoch", *keys * events, *common, *event * events],
        capture_output=True, text=True, check=True).stdout
    # "name","requests a second",…; the name is the whole command, with quotes in it.
    return float(out.strip().splitlines()[-1].rsplit('","', 7)[1]) * events


def batch_rate(internal, seconds, connections=4):
    """Events a second that POST /v1/events/batch accepts."""
    body = json.dumps({"events": [{"to": {"user": f"u{n}"}, "type": "t", "data": DATA}
                                  for n in range(ITEMS)]})
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    done, end = [0] * connections, time.monotonic() + seconds

    def run(n):
        link = http.client.HTTPConnection("127.0.0.1", internal)
        while time.monotonic() < end:
            link.request("POST", "/v1/events/batch", body, headers)
            answer = link.getresponse()
            text = answer.read()
            assert answer.status == 200 and b'"status":202' in text[:60], text[:200]
            done[n] += ITEMS
    threads = [threading.Thread(target=run, args=(n,)) for n in range(connections)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.monotonic() - started)


def single_rate(internal, seconds, connections=8, pipelined=64):
    """Events a second by single POSTs, pipelined on kept-alive connections."""
    body = json.dumps({"to": {"user": "u1"}, "type": "t", "data": DATA})
    request = (f"POST /v1/events HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {KEY}\r\n"
               f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}").encode()
    done, end = [0] * connections, time.monotonic() + seconds

    def run(n):
        with socket.create_connection(("127.0.0.1", internal)) as link:
            while time.monotonic() < end:
                link.sendall(request * pipelined)
                seen, tail = 0, b""
                while seen < pipelined:
                    data = tail + link.recv(1 << 18)
                    seen += data.count(b"HTTP/1.1 202")
                    tail = data[-11:] if not data.endswith(b"HTTP/1.1 202") else b""
                done[n] += pipelined
    threads = [threading.Thread(target=run, args=(n,)) for n in range(connections)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.monotonic() - started)


def connect(public, user, since=None, events=0):
    """A WebSocket handshake, and everything up to `belfry.live`, or the welcome alone."""
    query = f"?token={token(user)}" + (f"&since={since}" if since else "")
    with socket.create_connection(("127.0.0.1", public)) as link:
        link.sendall((f"GET /ws/notifications{query} HTTP/1.1\r\nhost: b\r\nupgrade: websocket\r\n"
                      "connection: upgrade\r\nsec-websocket-version: 13\r\n"
                      "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode())
        text, last = b"", b"belfry.live" if since else b"belfry.welcome"
        while last not in text:
            more = link.recv(1 << 18)
            assert more, text
            text += more
        while b'"}' not in text[text.index(b"belfry.welcome"):] and b"null" not in text:
            text += link.recv(1 << 18)
        assert text.count(b'"data"') >= events, text[-500:]
        start = text.index(b'"cursor":"') + 10
        return text[start:text.index(b'"', start)].decode()


def per_connect(server, public, since, events, count=400):
    before = cpu(server.pid)
    for n in range(count):
        connect(public, f"r{n % 50}", since and since[f"r{n % 50}"], events)
    return (cpu(server.pid) - before) / count * 1e6


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--repeat", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3)
    options = options.parse_args()
    folder = tempfile.TemporaryDirectory()
    redis, public, internal = free_port(), free_port(), free_port()
    store = pinned(1, ["redis-server", "--port", str(redis), "--save", "", "--dir", folder.name])
    env = {
        "PATH": os.environ["PATH"], "BELFRY_PROFILE": "production",
        "BELFRY__PUBLIC__BIND": f"127.0.0.1:{public}",
        "BELFRY__INTERNAL__BIND": f"127.0.0.1:{internal}",
        "BELFRY__PUBLIC__WORKERS": "1", "BELFRY__AUTH__JWT__SECRET": SECRET,
        "BELFRY__REDIS__URL": f"redis://127.0.0.1:{redis}",
        "BELFRY__API__KEYS": f"bench:{hashlib.sha256(KEY.encode()).hexdigest()}",
        "BELFRY__LIMITS__HANDSHAKES_PER_SECOND": "0", "BELFRY__LIMITS__CONNECTIONS_PER_USER": "0",
    }
    server = pinned(0, [f"{ROOT}/target/release/belfry", "serve"], env=env)
    try:
        for _ in range(100):
            time.sleep(0.1)
            try:
                link = http.client.HTTPConnection("127.0.0.1", internal)
                link.request("GET", "/readyz")
                if link.getresponse().status == 200:
                    break
            except OSError:
                pass
        rows = []
        for _ in range(options.repeat):
            script, joined = script_rate(redis, 1), script_rate(redis, CALL)
            batch = batch_rate(internal, options.seconds)
            used = cpu(server.pid), time.monotonic()
            single = single_rate(internal, options.seconds)
            busy = (cpu(server.pid) - used[0]) / (time.monotonic() - used[1])
            rows.append((script, joined, batch, batch / script, batch / joined, single, busy))
            print("script %.0f/s, joined %.0f/s  batch %.0f/s (%.2f, %.2f)  single %.0f/s on %.2f of "
                  "a core" % rows[-1], flush=True)
        names = ["script", "script, joined", "batch", "batch of script", "batch of joined", "single",
                 "core"]
        medians = {name: statistics.median(row[n] for row in rows) for n, name in enumerate(names)}
        print("medians", json.dumps(medians))
        one = int(cli(redis, "MEMORY", "USAGE", "ws:last:user:u1"))
        full = int(cli(redis, "MEMORY", "USAGE", "ws:user:u1", "SAMPLES", "0"))
        kept = int(cli(redis, "XLEN", "ws:user:u1"))
        print(f"Redis: {full / kept:.0f} bytes a kept event of 200 bytes of data ({kept} kept), "
              f"{one} a quiet channel")
        since = {f"r{n}": connect(public, f"r{n}") for n in range(50)}
        for name, cursor, events in [("connect", None, 0), ("resume, nothing missed", since, 0)]:
            costs = [per_connect(server, public, cursor, events) for _ in range(options.repeat)]
            print(f"{name}: {statistics.median(costs):.0f} us of CPU, handshake and leave included")
        link = http.client.HTTPConnection("127.0.0.1", internal)
        for user in since:
            link.request("POST", "/v1/events/batch", json.dumps({"events": [
                {"to": {"user": user}, "type": "t", "data": DATA} for _ in range(20)]}),
                {"authorization": f"Bearer {KEY}", "content-type": "application/json"})
            link.getresponse().read()
        costs = [per_connect(server, public, since, 20) for _ in range(options.repeat)]
        print(f"resume, 20 events missed: {statistics.median(costs):.0f} us of CPU")
    finally:
        for process in (server, store):
            process.terminate()
            process.wait()
        folder.cleanup()


if __name__ == "__main__":
    sys.exit(main())
