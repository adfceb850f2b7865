"""The loads of the comparison. Each takes the bench and a server's name or a running server, and gives
the figures that it came to."""

import json
import subprocess
import sys
import time

import kept
import lab
import subjects


class Void(Exception):
    """A run that does not count."""


class Bench:
    """What all loads need: the options, the Redis, and sizes that --quick makes small."""

    def __init__(self, options, redis):
        self.options, self.redis = options, redis
        # 19,000, or as many as the open-file limit lets Belfry take.
        with self.start("belfry") as subject:
            self.most = min(19_000, subject.process.limit())

    def size(self, full, quick):
        return quick if self.options.quick else full

    def start(self, name, **variant):
        """A server that has come to rest: memory is measured from here."""
        subject = subjects.start(self.options, self.redis.url, name, **variant)
        time.sleep(self.size(1.5, 0.5))
        return subject

    def wsload(self, subject, *args, url=None, timeout=240):
        """One run of the generator. Loss, repeats and disorder make it void, and failures too."""
        result = self.collect(self.spawn(subject, *args, url=url), timeout)
        for fault in ("failures", "lost", "duplicates", "out_of_order", "publish_errors"):
            if result.get(fault):
                raise Void(f"{result[fault]} {fault}")
        return result

    def spawn(self, subject, *args, url=None):
        pids = [arg for pid in subject.pids() for arg in ("--pid", str(pid))]
        command = lab.CLIENT + [self.options.wsload, *args, "--url", url or subject.url,
                                "--jwt-secret", lab.SECRET, "--skip", str(subject.skip), *pids]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @staticmethod
    def collect(process, timeout):
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise Void("the generator did not end") from error
        try:
            return json.loads(out.strip().splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise Void(err.strip()[-300:]) from error

    def own(self, subject, *args, timeout=240):
        """One run of `belfry bench`."""
        run = subject.process.bench(self.options.belfry, *args, timeout=timeout)
        if run is None:
            raise Void("belfry bench gave no report")
        told = run.get("deliveries", {})
        for fault in ("lost", "repeated", "out_of_order"):
            if told.get(fault):
                raise Void(f"{told[fault]} {fault}")
        if run.get("publishing", {}).get("refused") or run.get("connections", {}).get("failed"):
            raise Void(f"refused: {run.get('publishing')} {run.get('connections')}")
        return run


# Memory: a fresh process each.

def idle(count, quick):
    """`count` connections, or as many as are possible here."""
    def run(bench, name):
        n = bench.size(count or bench.most, quick)
        with bench.start(name) as subject:
            before = lab.pss(subject.pids())
            result = bench.wsload(subject, "idle", "--conns", str(n), "--hold",
                                  str(bench.size(3, 0.3)))
            if result["opened"] != n or result["alive"] != n:
                raise Void(f"{result['alive']} of {n} alive")
            # The generator has ended, and all its connections with it. An allocator that gives memory
            # back does so when it was not used for a while.
            time.sleep(bench.size(20 if name in subjects.OURS else 5, 1))
            result["pss_left"] = lab.pss(subject.pids()) - before
        label = f"idle-{count // 1000}k" if count else "idle-most"
        return {label: result["pss_bytes_per_conn"], f"{label}-left": result["pss_left"] / n}, result
    return run


def streams(bench, name):
    n = bench.size(5_000, 50)
    with bench.start(name) as subject:
        before = lab.pss(subject.pids())
        idlers = lab.Idlers(subject.process.public, sse=True)
        idlers.grow(n)
        time.sleep(bench.size(2, 0.3))
        grown = lab.pss(subject.pids()) - before
        idlers.touch()
        if len(idlers.open) != n:
            raise Void(f"{len(idlers.open)} of {n} streams alive")
        idlers.shrink(0)
    return {"sse-5k": grown / n}, {"grown": grown, "streams": n}


def back(bench, name):
    """From the start of the process to the last of 10,000 welcomes, with every limit as it ships."""
    n = bench.size(10_000, 200)
    start = time.monotonic()
    with subjects.start(bench.options, bench.redis.url, name,
                        limits__handshakes_per_second="5000") as subject:
        ready = time.monotonic() - start
        run = bench.own(subject, "idle", "--connections", str(n), "--at-once", "1024",
                        "--duration", "500ms")
    return {"back-10k": ready + run["connections"]["seconds"]}, {"ready_after": ready, **run}


def idle_cpu(bench, name):
    n, seconds = bench.size(10_000, 200), bench.size(60, 2)
    with bench.start(name) as subject:
        run = bench.own(subject, "idle", "--connections", str(n), "--duration", f"{seconds}s")
    if run["connections"]["alive"] != n:
        raise Void(f"{run['connections']['alive']} of {n} alive")
    return {"idle-cpu": run["server"]["busy"] * 100}, run


def two_workers(bench, name):
    with bench.start(name, public__workers="2") as subject:
        result = bench.wsload(subject, *fanout(bench, 1), *subject.broadcast)
    return {"w1-2workers": result["server_cpu_s_per_million"]}, result


def churn_memory(bench, name):
    binary = bench.options.baseline if name == "baseline" else bench.options.belfry
    with subjects.belfry(bench.options, None, f"{name}-memory", binary) as subject:
        figures, result = churn(bench, subject)
    return {"churn-memory": figures["churn"]}, result


def busy(bench, name):
    """Single events at a moderate rate, alone and while everyone else gets broadcasts."""
    n = bench.size(10_000, 200)
    rate = ["direct", "--connections", str(bench.size(1_000, 50)), "--tabs", "2", "--rate", "1500",
            "--duration", bench.size("3s", "600ms")]
    with bench.start(name) as subject:
        alone = bench.own(subject, *rate)
        others = bench.spawn(subject, "fanout", "--conns", str(n), "--rate", "2", "--messages", "40",
                             "--max-secs", str(bench.size(15, 3)), "--user-prefix", "other",
                             *subject.broadcast)
        try:
            connected(subject, n)
            with_others = bench.own(subject, *rate)
        finally:
            fan = bench.collect(others, 120)
    if fan.get("lost") or fan.get("duplicates"):
        raise Void(f"broadcasts: {fan['lost']} lost")
    figures = {
        "busy-alone": alone["deliveries"]["latency"]["p99_us"],
        "busy": with_others["deliveries"]["latency"]["p99_us"],
        "busy-fanout": fan["latency_us"]["p99"],
    }
    return figures, {"alone": alone, "with_others": with_others, "broadcasts": fan}


def connected(subject, count):
    end = time.monotonic() + 60
    while subject.process.metric("belfry_connections") < count:
        if time.monotonic() > end:
            raise Void(f"{count} connections did not come")
        time.sleep(0.1)


# On one process, one after another.

def fanout(bench, window, count=1_000):
    return ["fanout", "--conns", str(bench.size(count, count // 10 if count < 2_000 else 300)),
            "--window", str(window), "--messages", "100000",
            "--max-secs", str(bench.size(2 if count < 2_000 else 3, 0.4))]


def cost(label, window, way="broadcast", count=1_000):
    def run(bench, subject):
        result = bench.wsload(subject, *fanout(bench, window, count), *getattr(subject, way))
        return {label: result["server_cpu_s_per_million"]}, result
    return run


def broadcasts(bench, subject):
    result = bench.wsload(subject, "fanout", "--conns", str(bench.size(1_000, 100)), "--rate", "20",
                          "--messages", str(bench.size(60, 10)), *subject.broadcast)
    return {"fanout-20": result["latency_us"]["p99"]}, result


def flat(label, way="direct", lanes=1):
    def run(bench, subject):
        result = bench.wsload(subject, "direct", "--conns", str(bench.size(1_000, 100)), "--tabs", "2",
                              "--window", "256", "--messages", "10000000", "--max-secs",
                              str(bench.size(2, 0.4)), "--post-conns", str(lanes),
                              *getattr(subject, way), url=subject.direct_url)
        return {label: result["deliveries_per_s"]}, result
    return run


def rate(label, way="direct", lanes=1):
    def run(bench, subject):
        result = bench.wsload(subject, "direct", "--conns", str(bench.size(1_000, 100)), "--tabs", "2",
                              "--rate", "1500", "--messages", str(bench.size(4_500, 600)),
                              "--post-conns", str(lanes), *getattr(subject, way),
                              url=subject.direct_url)
        return {label: result["latency_us"]["p99"]}, result
    return run


def churn(bench, subject):
    result = bench.wsload(subject, "churn", "--conns", "64", "--hold", str(bench.size(2, 0.4)))
    return {"churn": result["cpu_s"]["server"] / result["cycles"] * 1e6}, result


def single(bench, subject):
    run = bench.own(subject, "publish", "--publishers", "64", "--duration", bench.size("3s", "400ms"))
    return {"publish": run["publishing"]["accepted_per_second"],
            "publish-cpu": run["server"]["cpu_us"]}, run


def batches(bench, subject):
    run = bench.own(subject, "publish", "--publishers", "4", "--batch", "500",
                    "--duration", bench.size("3s", "400ms"))
    batch = run["publishing"]["accepted_per_second"]
    try:
        script = kept.script_rate(bench.redis.port, 1)
    except (subprocess.CalledProcessError, OSError, ValueError, IndexError) as error:
        print(f"redis-benchmark with the script: {error}", file=sys.stderr)
        return {"batch": batch}, run
    return {"batch": batch, "script": script, "batch-of-script": batch / script}, run


ALL, OURS = "all", "ours"

# Name: who takes part, whether it is repeated often, and the load. Of those in FRESH, each run has a
# process of its own; those in WARM share one.
FRESH = {
    "idle-10k": (ALL, False, idle(10_000, 300)),
    "idle-most": (ALL, False, idle(None, 500)),
    "sse-5k": (OURS, False, streams),
    "back-10k": (OURS, False, back),
    "churn-memory": (OURS, False, churn_memory),
    "busy": (OURS, False, busy),
    "w1-2workers": (OURS, True, two_workers),
    "idle-cpu": (OURS, False, idle_cpu),
}
WARM = {
    "w1": (ALL, True, cost("w1", 1)),
    "w1-post": (OURS, True, cost("w1-post", 1, "post")),
    "w32": (ALL, True, cost("w32", 32)),
    "w1-10k": (ALL, False, cost("w1-10k", 1, count=10_000)),
    "w32-10k": (ALL, False, cost("w32-10k", 32, count=10_000)),
    "fanout-20": (ALL, False, broadcasts),
    "direct": (ALL, True, flat("direct")),
    "direct-post": (OURS, True, flat("direct-post", "direct_post", 16)),
    "rate": (ALL, True, rate("rate")),
    "rate-post": (OURS, True, rate("rate-post", "direct_post", 4)),
    "churn": (ALL, False, churn),
    "publish": (OURS, False, single),
    "batch": (OURS, False, batches),
}

# What a figure is, in words and in its unit.
FIGURES = {
    "idle-10k": "bytes an idle connection, 10,000 of them",
    "idle-most": "bytes an idle connection, {most:,} of them",
    "idle-10k-left": "bytes left a connection after all 10,000 have gone",
    "idle-most-left": "bytes left a connection after all {most:,} have gone",
    "sse-5k": "bytes an idle SSE stream, 5,000 of them",
    "w1": "CPU a delivery, one broadcast at a time, PUBLISHed raw, µs",
    "w1-post": "the same by POST and kept, µs",
    "w1-2workers": "the same raw with two workers, µs",
    "w32": "CPU a delivery in bursts, 32 under way, µs",
    "w1-10k": "one broadcast at a time to 10,000 connections, raw, µs",
    "w32-10k": "in bursts to 10,000 connections, µs",
    "fanout-20": "p99 of 20 broadcasts/s to 1,000 connections, µs",
    "direct": "one user at a time, flat out, deliveries/s",
    "direct-post": "the same by POST and kept, deliveries/s",
    "rate": "p99 at 1,500 single events/s, PUBLISHed raw, µs",
    "rate-post": "the same by POST and kept, µs",
    "busy-alone": "the same by POST, own load tool, µs",
    "busy": "the same while 10,000 others get 2 broadcasts/s, µs",
    "busy-fanout": "p99 of those broadcasts, µs",
    "churn": "CPU to connect, be checked and leave, with Redis, µs",
    "churn-memory": "the same in memory mode, µs",
    "back-10k": "10,000 clients back after a restart, s",
    "publish": "single POSTs accepted and kept on one core, events/s",
    "publish-cpu": "CPU a single POST, µs",
    "batch": "accepted and kept in batches of 500, events/s",
    "script": "redis-benchmark with the same script, calls/s",
    "batch-of-script": "the batches' share of that",
    "idle-cpu": "10,000 idle connections with heartbeats, % of a core",
}
