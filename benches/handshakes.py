#!/usr/bin/env python3
"""What a handshake costs by kind of credential, and how long 10,000 clients need to come back.

Needs `wsload`, `openssl` and `redis-server`. The server runs on core 0, the rest on core 1.

    cargo build --release
    benches/handshakes.py --wsload PATH --out FOLDER [--repeat 5]
"""

import argparse
import base64
import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from compare import CLIENT, KEY, SECRET, SERVER, free_port, wait_for  # noqa: E402

ORIGIN = "http://app.example"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def openssl(*args, data=b""):
    return subprocess.run(["openssl", *args], input=data, capture_output=True, check=True).stdout


def raw_signature(der, size):
    """ECDSA's r and s, out of the DER that openssl writes."""
    at, parts = 2 if der[1] < 0x80 else 3, []
    for _ in range(2):
        length = der[at + 1]
        parts.append(der[at + 2:at + 2 + length].lstrip(b"\0").rjust(size, b"\0"))
        at += 2 + length
    return b"".join(parts)


def token(algorithm, key):
    claims = {"sub": "bench", "iat": int(time.time()), "exp": int(time.time()) + 86400}
    head = b64(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    message = f"{head}.{b64(json.dumps(claims).encode())}"
    signature = openssl("dgst", "-sha256", "-sign", key, data=message.encode())
    if algorithm == "ES256":
        signature = raw_signature(signature, 32)
    return f"{message}.{b64(signature)}"


def keys(out):
    rsa, ec = os.path.join(out, "rsa.pem"), os.path.join(out, "ec.pem")
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", rsa)
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", ec)
    for private in (rsa, ec):
        openssl("pkey", "-in", private, "-pubout", "-out", private + ".pub")
    return rsa, ec


def start(options, redis, algorithm, public_key):
    public, internal = free_port(), free_port()
    env = {
        "BELFRY_PROFILE": "production", "BELFRY__PUBLIC__WORKERS": "1",
        "BELFRY__PUBLIC__BIND": f"127.0.0.1:{public}",
        "BELFRY__INTERNAL__BIND": f"127.0.0.1:{internal}",
        "BELFRY__REDIS__URL": f"redis://127.0.0.1:{redis}",
        "BELFRY__API__KEYS": f"bench:{hashlib.sha256(KEY.encode()).hexdigest()}",
        "BELFRY__AUTH__JWT__ALGORITHMS": algorithm, "BELFRY__AUTH__ORIGINS": ORIGIN,
        # All clients of a run bear one token or cookie.
        "BELFRY__LIMITS__CONNECTIONS_PER_USER": options.per_user,
        "BELFRY__LIMITS__HANDSHAKES_PER_SECOND": options.rate,
    }
    if public_key:
        env["BELFRY__AUTH__JWT__PUBLIC_KEY_FILES"] = public_key
    else:
        env["BELFRY__AUTH__JWT__SECRET"] = SECRET
    log = open(os.path.join(options.out, "belfry.log"), "a")
    process = subprocess.Popen(SERVER + [options.belfry], env={**os.environ, **env}, stdout=log,
                               stderr=log)
    wait_for(public)
    time.sleep(1.5)
    return process, public, internal


def load(options, args):
    run = subprocess.run(CLIENT + [options.wsload, *args], capture_output=True, text=True,
                         timeout=180, check=False)
    if not run.stdout.strip():
        sys.exit(run.stderr[-500:])
    return json.loads(run.stdout.strip().splitlines()[-1])


def commands(redis):
    text = subprocess.run(["redis-cli", "-p", str(redis), "info", "commandstats"],
                          capture_output=True, text=True, check=True).stdout
    return {line.split(":")[0][8:]: int(line.split("calls=")[1].split(",")[0])
            for line in text.splitlines() if line.startswith("cmdstat_")}


def churn(options, redis, name, url, extra, algorithm="HS256", public_key=None):
    process, public, _ = start(options, redis, algorithm, public_key)
    try:
        before = commands(redis)
        result = load(options, ["churn", "--url", f"ws://127.0.0.1:{public}/ws/notifications{url}",
                                "--conns", "64", "--hold", "2", "--jwt-secret", SECRET,
                                "--pid", str(process.pid), *extra])
        after = commands(redis)
        asked = {k: v - before.get(k, 0) for k, v in after.items() if v - before.get(k, 0) > 50}
        cycles = result["cycles"]
        cost = result["cpu_s"]["server"] / cycles * 1e6
        per = {k: round(v / cycles, 2) for k, v in sorted(asked.items())}
        print(f"{name:8} {cost:7.1f} µs  {cycles} cycles  commands a cycle {per}", flush=True)
        return cost, per
    finally:
        process.terminate()
        process.kill()
        process.wait()


def come_back(options, redis):
    """10,000 clients at once, as after a restart, and an event each 20 ms for one who is connected."""
    process, public, internal = start(options, redis, "HS256", None)
    try:
        url = f"ws://127.0.0.1:{public}/ws/notifications?token={{token}}"
        common = ["--url", url, "--jwt-secret", SECRET, "--skip", "1"]
        outcome = {}

        def direct():
            outcome["direct"] = load(options, ["direct", *common, "--conns", "20", "--user-prefix", "d",
                                               "--redis", f"127.0.0.1:{redis}", "--rate", "200",
                                               "--messages", "1600", "--pid", str(process.pid)])
        thread = threading.Thread(target=direct)
        thread.start()
        time.sleep(2)
        idle = load(options, ["idle", *common, "--conns", "10000", "--hold", "1", "--inflight", "4000",
                              "--pid", str(process.pid)])
        thread.join()
        seconds = idle["opened"] / idle["conns_per_s"]
        p99 = outcome["direct"]["latency_us"]["p99"] / 1000
        print(f"{idle['opened']} back in {seconds:.2f} s; p99 of events meanwhile {p99:.1f} ms; "
              f"failures {idle['failures']}", flush=True)
        return seconds, p99
    finally:
        process.terminate()
        process.kill()
        process.wait()


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--wsload", required=True)
    parse.add_argument("--out", required=True)
    parse.add_argument("--belfry", default="target/release/belfry")
    parse.add_argument("--repeat", type=int, default=5)
    parse.add_argument("--per-user", default="32")
    parse.add_argument("--rate", default="0")
    options = parse.parse_args()
    os.makedirs(options.out, exist_ok=True)
    rsa, ec = keys(options.out)
    redis_port = free_port()
    redis = subprocess.Popen(CLIENT + ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1",
                                       "--save", "", "--appendonly", "no", "--dir", options.out],
                             stdout=subprocess.DEVNULL)
    costs = {}
    try:
        wait_for(redis_port)
        for n in range(100):
            subprocess.run(["redis-cli", "-p", str(redis_port), "set", f"session:s{n}",
                            json.dumps({"user_id": f"bench-{n}"})], check=True,
                           stdout=subprocess.DEVNULL)
        for _ in range(options.repeat):
            kinds = {
                "HS256": ("?token={token}", [], "HS256", None),
                "RS256": (f"?token={token('RS256', rsa)}", [], "RS256", rsa + ".pub"),
                "ES256": (f"?token={token('ES256', ec)}", [], "ES256", ec + ".pub"),
                "cookie": ("", ["--header", "Cookie: session_id=s{user}", "--header",
                                f"Origin: {ORIGIN}", "--user-prefix", ""], "HS256", None),
            }
            for name, (url, extra, algorithm, public) in kinds.items():
                cost, per = churn(options, redis_port, name, url, extra, algorithm, public)
                costs.setdefault(name, []).append(cost)
            seconds, p99 = come_back(options, redis_port)
            costs.setdefault("back, s", []).append(seconds)
            costs.setdefault("p99 meanwhile, ms", []).append(p99)
    finally:
        redis.terminate()
        redis.wait()
    print("\n| | median | range |\n|---|---|---|")
    for name, values in costs.items():
        print(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f}–{max(values):.1f} |")


if __name__ == "__main__":
    main()
