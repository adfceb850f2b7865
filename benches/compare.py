#!/usr/bin/env python3
"""Belfry beside its peers under one load generator, in turns, and the table for docs/benchmarks.md.

Needs `wsload` (a WebSocket load generator) and a folder with a start script for each peer; both are
neutral and not part of this project. Servers run on core 0, the generator and Redis on core 1.

    cargo build --release
    benches/compare.py --wsload PATH --peers FOLDER --out FOLDER [--repeat 5] [--only belfry,floor]
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

SECRET = "a-secret-for-benchmarks-of-32-bytes-or-more"
KEY = "benchmark"
SERVER, CLIENT = ["taskset", "-c", "0"], ["taskset", "-c", "1"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


def children(pid):
    """The processes below `pid`, itself included."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as f:
                    todo += [int(p) for p in f.read().split()]
        except FileNotFoundError:
            pass
    return found


class Server:
    def __init__(self, name, command, env, port, url, extra, out):
        self.name, self.url, self.extra = name, url, extra
        log = open(os.path.join(out, f"{name}.log"), "w")
        self.process = subprocess.Popen(SERVER + command, env={**os.environ, **env}, stdout=log,
                                        stderr=log, start_new_session=True)
        wait_for(port)
        time.sleep(1)

    def pids(self):
        return [arg for pid in children(self.process.pid) for arg in ("--pid", str(pid))]

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(name, options, redis):
    out, peers = options.out, options.peers
    env = {"BENCH_TMP": os.path.join(out, "peers"), "JWT_SECRET": SECRET,
           "REDIS_URL": f"redis://127.0.0.1:{redis}"}
    port, control = free_port(), free_port()
    by_redis = ["--redis", f"127.0.0.1:{redis}"]
    if name == "belfry":
        env.update({
            "BELFRY_PROFILE": "production", "BELFRY__PUBLIC__WORKERS": "1",
            "BELFRY__PUBLIC__BIND": f"127.0.0.1:{port}",
            "BELFRY__INTERNAL__BIND": f"127.0.0.1:{control}",
            "BELFRY__REDIS__URL": env["REDIS_URL"], "BELFRY__AUTH__JWT__SECRET": SECRET,
            "BELFRY__API__KEYS": f"bench:{hashlib.sha256(KEY.encode()).hexdigest()}",
        })
        url = f"ws://127.0.0.1:{port}/ws/notifications?token={{token}}"
        return Server(name, [options.belfry], env, port, url, by_redis + ["--skip", "1"], out)
    script = os.path.join(peers, {"floor-joined": "floor"}.get(name, name), "start.sh")
    if name in ("floor", "floor-joined"):
        args = [str(port), str(control)] + (["coalesce"] if name == "floor-joined" else [])
        url = f"ws://127.0.0.1:{port}/?user={{user}}"
        return Server(name, ["sh", script] + args, env, port, url,
                      ["--redis", f"127.0.0.1:{control}"], out)
    if name == "node-ws":
        url = f"ws://127.0.0.1:{port}/?token={{token}}"
        return Server(name, ["sh", script, str(port)], env, port, url, by_redis, out)
    if name == "nchan":
        url = f"ws://127.0.0.1:{port}/ws?user={{user}}"
        extra = ["--post", f"http://127.0.0.1:{port}/pub/broadcast"]
        return Server(name, ["sh", script, str(port), "1"], env, port, url, extra, out)
    sys.exit(f"no such server: {name}")


LOADS = {
    "w1": ["fanout", "--conns", "1000", "--window", "1", "--messages", "100000", "--max-secs", "2"],
    "w32": ["fanout", "--conns", "1000", "--window", "32", "--messages", "100000", "--max-secs", "2"],
    "rate": ["fanout", "--conns", "1000", "--rate", "20", "--messages", "60"],
    "direct": ["direct", "--conns", "1000", "--tabs", "2", "--rate", "1500", "--messages", "4500"],
    "w1-10k": ["fanout", "--conns", "10000", "--window", "1", "--messages", "100000", "--max-secs", "3"],
    "w32-10k": ["fanout", "--conns", "10000", "--window", "32", "--messages", "100000", "--max-secs", "3"],
    "churn": ["churn", "--conns", "64", "--hold", "2"],
    "idle": ["idle", "--conns", "10000", "--hold", "3"],
}


def measure(server, load, options):
    extra = list(server.extra)
    if server.name == "nchan":
        if load == "direct":
            server_url = server.url.replace("/ws?", "/user?")
            extra = [e.replace("/pub/broadcast", "/pub/{user}") for e in extra]
        else:
            server_url = server.url
    else:
        server_url = server.url
    command = CLIENT + [options.wsload] + LOADS[load] + ["--url", server_url, "--jwt-secret", SECRET]
    command += extra + server.pids()
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    try:
        result = json.loads(run.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        print(f"{server.name} {load}: {run.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    result["server_name"], result["load"] = server.name, load
    return result


def number(result, load):
    """The figure of the table, and whether the run counts."""
    if load in ("w1", "w32", "w1-10k", "w32-10k"):
        return result["server_cpu_s_per_million"]
    if load in ("rate", "direct"):
        return result["latency_us"]["p99"]
    if load == "churn":
        return result["cpu_s"]["server"] / result["cycles"] * 1e6
    return result["pss_bytes_per_conn"]


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--wsload", required=True)
    parse.add_argument("--peers", required=True)
    parse.add_argument("--out", required=True)
    parse.add_argument("--belfry", default="target/release/belfry")
    parse.add_argument("--repeat", type=int, default=5)
    parse.add_argument("--only", default="floor,floor-joined,belfry,node-ws,nchan")
    parse.add_argument("--loads", default=",".join(LOADS))
    options = parse.parse_args()
    os.makedirs(options.out, exist_ok=True)
    redis_port = free_port()
    redis = subprocess.Popen(CLIENT + ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1",
                                       "--save", "", "--appendonly", "no", "--dir", options.out],
                             stdout=subprocess.DEVNULL)
    results = []
    try:
        wait_for(redis_port)
        for turn in range(options.repeat):
            for name in options.only.split(","):
                server = start(name, options, redis_port)
                try:
                    # Idle first: memory is measured in a fresh process.
                    for load in sorted(options.loads.split(","), key=lambda l: l != "idle"):
                        result = measure(server, load, options)
                        if result:
                            results.append(result)
                            print(f"{turn + 1} {name:13} {load:8} {number(result, load):12.3f}", flush=True)
                finally:
                    server.stop()
    finally:
        redis.terminate()
        redis.wait()
        shutil.rmtree(os.path.join(options.out, "peers", "nchan"), ignore_errors=True)
    with open(os.path.join(options.out, "results.json"), "w") as f:
        json.dump(results, f)
    loads = options.loads.split(",")
    print("\n| server | " + " | ".join(loads) + " |\n|---" * 1 + "|---" * len(loads) + "|")
    for name in options.only.split(","):
        cells = []
        for load in loads:
            runs = [r for r in results if r["server_name"] == name and r["load"] == load]
            bad = [r for r in runs if r.get("lost") or r.get("duplicates") or r.get("out_of_order")]
            values = sorted(number(r, load) for r in runs if r not in bad)
            cell = "–" if not values else \
                f"{statistics.median(values):.2f} ({values[0]:.2f}–{values[-1]:.2f})"
            cells.append(cell + (f", {len(bad)} bad" if bad else ""))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
