"""What is aimed at, and by how much it is met or missed."""

import statistics

# Words, the figure or the pair of a ratio, the bound, and whether less or more is better. A pair is
# (load, server) over (load, server); ratios are taken within each turn, and the median counts.
TARGETS = [
    ("memory a WebSocket, 10,000", ("idle-10k", "belfry"), None, 5 * 1024, "less"),
    ("memory a WebSocket, as many as go here (19,000)", ("idle-most", "belfry"), None, 5 * 1024, "less"),
    ("memory an SSE stream", ("sse-5k", "belfry"), None, 16 * 1024, "less"),
    ("left after a mass disconnect, of 10,000", ("idle-10k-left", "belfry"), ("idle-10k", "belfry"), 0.25, "less"),
    ("one broadcast at a time, raw, to the floor", ("w1", "belfry"), ("w1", "floor"), 1.5, "less"),
    ("the stretch of that", ("w1", "belfry"), ("w1", "floor"), 1.3, "less"),
    ("one broadcast at a time, POST and kept, to the floor", ("w1-post", "belfry"), ("w1", "floor"), 1.6, "less"),
    ("CPU a delivery in bursts, µs", ("w32", "belfry"), None, 0.5, "less"),
    ("one user at a time, raw, of the floor", ("direct", "belfry"), ("direct", "floor"), 0.9, "more"),
    ("p99 at 1,500/s, raw, to the floor", ("rate", "belfry"), ("rate", "floor"), 2, "less"),
    ("p99 at 1,500/s, POST and kept, to the floor", ("rate-post", "belfry"), ("rate", "floor"), 4, "less"),
    ("connect and leave, memory mode, µs", ("churn-memory", "belfry"), None, 70, "less"),
    ("connect and leave, with Redis, µs", ("churn", "belfry"), None, 100, "less"),
    ("10,000 back after a restart, s", ("back-10k", "belfry"), None, 4, "less"),
    ("single POSTs kept on one core, events/s", ("publish", "belfry"), None, 25_000, "more"),
    ("batches, of redis-benchmark", ("batch-of-script", "belfry"), None, 0.5, "more"),
    ("10,000 idle, % of a core", ("idle-cpu", "belfry"), None, 1, "less"),
    ("two workers to one", ("w1-2workers", "belfry"), ("w1", "belfry"), 1.1, "less"),
    ("node-ws to Belfry, one at a time", ("w1", "node-ws"), ("w1", "belfry"), 1, "more"),
    ("nchan to Belfry, one at a time", ("w1", "nchan"), ("w1", "belfry"), 1, "more"),
    ("node-ws to Belfry, memory", ("idle-10k", "node-ws"), ("idle-10k", "belfry"), 1, "more"),
    ("nchan to Belfry, memory", ("idle-10k", "nchan"), ("idle-10k", "belfry"), 1, "more"),
]


def values(runs, figure, server):
    """By turn."""
    return {run["turn"]: run["figures"][figure] for run in runs
            if run["server"] == server and figure in run.get("figures", {})}


def measured(runs, top, bottom):
    """The figure of each turn, or the ratio of two within it."""
    over = values(runs, *top)
    if bottom is None:
        return list(over.values())
    under = values(runs, *bottom)
    return [over[turn] / under[turn] for turn in over if under.get(turn)]


def verdict(found, bound, better):
    met = found <= bound if better == "less" else found >= bound
    by = abs(found - bound) / bound * 100
    return met, f"{'met' if met else 'missed'} by {by:.0f} %"


def judge(runs):
    """A row for each target: words, median, least, most, bound, verdict."""
    rows = []
    for words, top, bottom, bound, better in TARGETS:
        found = measured(runs, top, bottom)
        if not found:
            rows.append({"target": words, "bound": bound, "better": better,
                         "verdict": "not measured"})
            continue
        median = statistics.median(found)
        met, told = verdict(median, bound, better)
        rows.append({"target": words, "median": median, "least": min(found), "most": max(found),
                     "bound": bound, "better": better, "met": met, "verdict": told})
    busy(runs, rows)
    return rows


def busy(runs, rows):
    """What a broadcast adds to others' p99, beside the time it takes to go out."""
    alone, beside = values(runs, "busy-alone", "belfry"), values(runs, "busy", "belfry")
    fan = values(runs, "busy-fanout", "belfry")
    shares = [(beside[turn] - alone[turn]) / fan[turn] for turn in beside if fan.get(turn)]
    words = "p99 that a broadcast to 10,000 adds, of its own fan-out time"
    if not shares:
        rows.append({"target": words, "bound": 1, "better": "less", "verdict": "not measured"})
        return
    median = statistics.median(shares)
    met, told = verdict(median, 1, "less")
    rows.append({"target": words, "median": median, "least": min(shares), "most": max(shares),
                 "bound": 1, "better": "less", "met": met, "verdict": told})
