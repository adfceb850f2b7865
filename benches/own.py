#!/usr/bin/env python3
"""`belfry bench all` against a gateway and a Redis of its own, on free ports; ends in about a minute.

The gateway runs on core 0, the load and Redis on core 1. For a deployment, use `belfry bench` itself.

    cargo build --release
    benches/own.py [--connections 1000] [--duration 5s] [--json FILE]
"""

import argparse
import os
import subprocess
import sys
import tempfile

import lab


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--belfry", default=os.path.join(lab.ROOT, "target/release/belfry"))
    parse.add_argument("--connections", type=int, default=1000)
    parse.add_argument("--duration", default="5s", help="of each load")
    parse.add_argument("--json", metavar="FILE", help="write JSON there instead of the text")
    options = parse.parse_args()
    lab.raise_files()
    with tempfile.TemporaryDirectory() as out, lab.Redis(out) as redis, \
            lab.Belfry(options.belfry, out, redis.url) as gateway:
        env = {**os.environ, "BELFRY_API_KEY": lab.KEY,
               "BELFRY_URL": f"http://127.0.0.1:{gateway.internal}",
               "BELFRY__AUTH__JWT__SECRET": lab.SECRET}
        pids = [arg for pid in gateway.pids() for arg in ("--pid", str(pid))]
        command = lab.CLIENT + [options.belfry, "bench", "all", *pids,
                                "--url", f"ws://127.0.0.1:{gateway.public}",
                                "--connections", str(options.connections),
                                "--duration", options.duration]
        if not options.json:
            return subprocess.run(command, env=env, check=False).returncode
        with open(options.json, "w") as file:
            return subprocess.run([*command, "--json"], env=env, stdout=file, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
