#!/usr/bin/env python3
"""Memory over connections: from none to 19,000 idle WebSockets in steps, and back to none.

Needs `redis-server` and an open-file limit above the number of connections. Writes memory.json and
memory.svg.

    cargo build --release
    benches/memory.py --out FOLDER [--most 19000] [--step 1000] [--in-memory]
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time

import lab
import plot


def slope(points):
    """Bytes for each connection, by least squares."""
    xs, ys = [p["connections"] for p in points], [p["pss"] for p in points]
    return statistics.linear_regression(xs, ys).slope if len(set(xs)) > 1 else 0.0


def measure(idlers, server, count, direction, settle):
    # Threads that came up late, and memory that is given back late, are none of a step's own.
    time.sleep(settle)
    idlers.touch()
    if len(idlers.open) != count:
        raise RuntimeError(f"{count - len(idlers.open)} of {count} connections ended by themselves")
    point = {"connections": len(idlers.open), "direction": direction, "pss": lab.pss(server.pids()),
             "kernel_sockets": sockets()}
    print(f"{direction:5} {point['connections']:6} connections {point['pss'] / 2**20:8.1f} MiB", flush=True)
    return point


def sockets():
    """Pages of TCP buffers of the whole machine, both ends of each connection, in bytes."""
    with open("/proc/net/sockstat") as f:
        line = next(line for line in f if line.startswith("TCP:"))
    return int(line.split(" mem ")[1].split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--out", required=True)
    parse.add_argument("--belfry", default=os.path.join(lab.ROOT, "target/release/belfry"))
    parse.add_argument("--most", type=int, default=19_000)
    parse.add_argument("--step", type=int, default=1_000)
    parse.add_argument("--settle", type=float, default=1.0, help="seconds before each measurement")
    parse.add_argument("--in-memory", action="store_true", help="without Redis")
    options = parse.parse_args()
    os.makedirs(options.out, exist_ok=True)
    files = lab.raise_files()
    points = []
    with contextlib.ExitStack() as stack:
        redis = None if options.in_memory else stack.enter_context(lab.Redis(options.out)).url
        server = stack.enter_context(lab.Belfry(options.belfry, options.out, redis, name="memory"))
        most = min(options.most, server.limit(), files - 100)
        if most < options.most:
            print(f"ulimit -n is {files}: {most} connections at most", file=sys.stderr)
        counts = [*range(0, most, options.step), most]
        idlers = lab.Idlers(server.public)
        for count in counts:
            idlers.grow(count)
            points.append(measure(idlers, server, count, "up", options.settle))
        for count in reversed(counts[:-1]):
            idlers.shrink(count)
            points.append(measure(idlers, server, count, "down", options.settle))
    up = [p for p in points if p["direction"] == "up"]
    down = [up[-1]] + [p for p in points if p["direction"] == "down"]
    result = {
        "bytes_per_connection_up": slope(up), "bytes_per_connection_down": slope(down),
        "left_after_all_closed": down[-1]["pss"] - up[0]["pss"], "in_memory": options.in_memory,
        "points": points,
    }
    with open(os.path.join(options.out, "memory.json"), "w") as f:
        json.dump(result, f, indent=1)
    mib = {name: [(p["connections"], p["pss"] / 2**20) for p in line]
           for name, line in (("while they come", up), ("while they go", down))}
    with open(os.path.join(options.out, "memory.svg"), "w") as f:
        f.write(plot.lines("Memory over idle WebSocket connections", "connections",
                           "MiB (Pss of the process)", mib))
    print(f"{slope(up):.0f} bytes a connection while they come, {slope(down):.0f} while they go; "
          f"{result['left_after_all_closed'] / 2**20:.1f} MiB are left of what they took")


if __name__ == "__main__":
    main()
