#!/usr/bin/env python3
"""How long a replica needs to give many users what they missed.

Every user of one replica is connected; it loses the right to subscribe, and with it its subscription. Each
user is published an event by another replica, and then the right is given back. The time is from the proof
that the subscription delivers again to the last event handed out, by the replica's own log.

Needs `wsload` and `redis-server`, and more open files than users (`ulimit -n`, 20,000 at least).

    cargo build --release
    benches/repair.py --wsload PATH [--users 17000] [--repeat 5]
"""

import argparse
import datetime
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from kept import KEY, ROOT, SECRET, cli, free_port, pinned  # noqa: E402


class Replica:
    def __init__(self, redis, folder, name):
        self.public, self.internal = free_port(), free_port()
        self.log = os.path.join(folder, name)
        env = {
            "PATH": os.environ["PATH"], "BELFRY_PROFILE": "production",
            "BELFRY__PUBLIC__BIND": f"127.0.0.1:{self.public}",
            "BELFRY__INTERNAL__BIND": f"127.0.0.1:{self.internal}",
            "BELFRY__PUBLIC__WORKERS": "1", "BELFRY__AUTH__JWT__SECRET": SECRET,
            "BELFRY__REDIS__URL": f"redis://{name}:none@127.0.0.1:{redis}",
            "BELFRY__API__KEYS": f"bench:{hashlib.sha256(KEY.encode()).hexdigest()}",
            "BELFRY__LIMITS__HANDSHAKES_PER_SECOND": "0",
        }
        self.process = subprocess.Popen(
            ["taskset", "-c", "0", f"{ROOT}/target/release/belfry", "serve"], env=env,
            stdout=open(self.log, "w"), stderr=subprocess.STDOUT)

    def get(self, path):
        try:
            link = http.client.HTTPConnection("127.0.0.1", self.internal, timeout=5)
            link.request("GET", path)
            answer = link.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""

    def lines(self):
        for line in open(self.log):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            at = datetime.datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00"))
            yield at.timestamp(), entry["fields"]


def wait(what, check, limit=60):
    end = time.monotonic() + limit
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def count_reads(redis):
    return int(cli(redis, "INFO", "stats").split("total_reads_processed:")[1].split()[0])


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--wsload", required=True)
    options.add_argument("--users", type=int, default=17000)
    options.add_argument("--repeat", type=int, default=5)
    options = options.parse_args()
    folder = tempfile.TemporaryDirectory()
    redis = free_port()
    store = pinned(1, ["redis-server", "--port", str(redis), "--save", "", "--dir", folder.name])
    time.sleep(0.5)
    for name in ("far", "near"):
        cli(redis, "ACL", "SETUSER", name, "on", "nopass", "~*", "+@all", "allchannels")
    far, near = Replica(redis, folder.name, "far"), Replica(redis, folder.name, "near")
    load = None
    try:
        for replica in (far, near):
            wait("ready", lambda: replica.get("/readyz")[0] == 200)
        load = subprocess.Popen(
            [options.wsload, "idle", "--url",
             f"ws://127.0.0.1:{far.public}/ws/notifications?token={{token}}", "--jwt-secret", SECRET,
             "--conns", str(options.users), "--skip", "1", "--hold", "300"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        connected = f'belfry_connections{{transport="websocket"}} {options.users}'
        wait("connected", lambda: connected in far.get("/metrics")[1])
        link = http.client.HTTPConnection("127.0.0.1", near.internal)
        bodies = [json.dumps({"events": [{"to": {"user": f"u{n}"}, "type": "t", "data": "missed"}
                                         for n in range(start, min(start + 1000, options.users))]})
                  for start in range(0, options.users, 1000)]
        times = []
        for _ in range(options.repeat):
            before = len(list(far.lines()))
            cli(redis, "ACL", "SETUSER", "far", "resetchannels")
            for body in bodies:
                link.request("POST", "/v1/events/batch", body, {
                    "authorization": f"Bearer {KEY}", "content-type": "application/json"})
                link.getresponse().read()
            reads = count_reads(redis)
            cli(redis, "ACL", "SETUSER", "far", "allchannels")

            def found(text):
                lines = list(far.lines())[before:]
                return [line for line in lines if text in line[1].get("message", "")]
            wait("repaired", lambda: found("what was missed"))
            after = count_reads(redis)
            done = found("what was missed")[-1]
            begun = found("reaches this replica")[-1][0]
            times.append(done[0] - begun)
            print(f"{done[1]['events']} of {options.users} events filled in {times[-1] * 1e3:.0f} ms; "
                  f"{after - reads} reads by Redis, what else it does included", flush=True)
        print(f"median {statistics.median(times) * 1e3:.0f} ms for {options.users} users")
    finally:
        for process in filter(None, (load, far.process, near.process, store)):
            process.terminate()
            process.wait()
        folder.cleanup()


if __name__ == "__main__":
    sys.exit(main())
