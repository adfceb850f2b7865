#!/usr/bin/env python3
"""Belfry beside its peers under one load generator, in turns: the table, the targets and the plots of
docs/benchmarks.md.

Needs `wsload` (a WebSocket load generator) and a folder with a start script for each peer; both are
neutral and not part of this project. Servers run on core 0, the generator and Redis on core 1. Belfry
runs as it ships. A run in which an event was lost, repeated or out of order does not count, and is told.

    cargo build --release
    benches/compare.py --wsload PATH --peers FOLDER --out FOLDER [--baseline OLDER-BELFRY] [--quick]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import lab
import loads
import plot
import subjects
import targets


def words(value):
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def span(found):
    if not found:
        return "–"
    return f"{words(statistics.median(found))} ({words(min(found))}–{words(max(found))})"


def attempt(runs, turn, name, label, work):
    """One run; what does not count is kept too, with its reason."""
    run = {"turn": turn, "server": name, "load": label, "at": time.time()}
    try:
        run["figures"], run["raw"] = work()
        told = "  ".join(f"{k} {words(v)}" for k, v in run["figures"].items())
    except (loads.Void, OSError, RuntimeError, KeyError, subprocess.TimeoutExpired) as error:
        run["void"] = f"{type(error).__name__}: {error}"
        told = f"does not count: {error}"
    runs.append(run)
    print(f"{turn:2} {name:13} {label:13} {told}", flush=True)


def due(spec, options, turn, name, label):
    who, often, _ = spec
    repeat = options.often if often else options.seldom
    return label in options.loads and turn <= repeat and (who == loads.ALL or name in subjects.OURS)


def one_turn(bench, runs, turn, name):
    options = bench.options
    for label, spec in loads.FRESH.items():
        if due(spec, options, turn, name, label):
            attempt(runs, turn, name, label, lambda work=spec[2]: work(bench, name))
    warm = {label: spec for label, spec in loads.WARM.items() if due(spec, options, turn, name, label)}
    if not warm:
        return
    try:
        subject = bench.start(name)
    except (OSError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return
    with subject:
        for label, spec in warm.items():
            attempt(runs, turn, name, label, lambda work=spec[2]: work(bench, subject))


def tables(runs, chosen, most):
    """Markdown: the figures, then the targets."""
    names = chosen.only
    lines = ["**Quick run: sizes and times are too small to measure anything.**", ""] if chosen.quick else []
    lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for figure, told in loads.FIGURES.items():
        cells = [list(targets.values(runs, figure, name).values()) for name in names]
        if any(cells):
            lines.append(f"| {told.format(most=most)} | " + " | ".join(span(cell) for cell in cells) + " |")
    lines += ["", "| target | median (range) | bound | |", "|---|---|---|---|"]
    for row in targets.judge(runs):
        found = "–" if "median" not in row else \
            f"{words(row['median'])} ({words(row['least'])}–{words(row['most'])})"
        bound = f"{'at least' if row.get('better') == 'more' else 'at most'} {words(row['bound'])}"
        lines.append(f"| {row['target']} | {found} | {bound} | {row['verdict']} |")
    void = [run for run in runs if "void" in run]
    lines += ["", f"{len(runs)} runs, {len(void)} of them do not count."]
    lines += [f"- {run['server']} {run['load']}: {run['void'].splitlines()[0][:120]}" for run in void]
    return "\n".join(lines) + "\n"


def plots(runs, names, out):
    for figure, file, title, unit in (
            ("w1", "cpu.svg", "CPU for each delivery, one broadcast at a time", "µs of server CPU"),
            ("w32", "cpu-bursts.svg", "CPU for each delivery in bursts", "µs of server CPU"),
            ("idle-10k", "memory-each.svg", "Memory of an idle connection, 10,000 of them",
             "bytes (Pss of the process)")):
        rows = []
        for name in names:
            found = list(targets.values(runs, figure, name).values())
            if found:
                rows.append((name, statistics.median(found), min(found), max(found)))
        if rows:
            with open(os.path.join(out, file), "w") as f:
                f.write(plot.bars(title, unit, rows))


def version(*command):
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return (run.stdout + run.stderr).strip().splitlines()[0] if run.returncode == 0 else "?"


def machine(options):
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "?")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"), "cpu": cpu, "cores": os.cpu_count(),
        "kernel": platform.release(), "belfry": version(options.belfry, "--version"),
        "commit": version("git", "-C", lab.ROOT, "rev-parse", "HEAD"),
        "redis": version("redis-server", "--version"), "node": version("node", "--version"),
        "nginx": version("nginx", "-v"), "load_average": os.getloadavg(),
        "command": " ".join(sys.argv),
    }


def options():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--wsload", required=True)
    parse.add_argument("--peers", required=True)
    parse.add_argument("--out", required=True)
    parse.add_argument("--peers-tmp", help="where peers are built and installed (default: in --out)")
    parse.add_argument("--belfry", default=os.path.join(lab.ROOT, "target/release/belfry"))
    parse.add_argument("--baseline", help="an older build of Belfry beside it")
    parse.add_argument("--only", default="floor,belfry,node-ws,nchan")
    parse.add_argument("--loads", default=",".join([*loads.FRESH, *loads.WARM]))
    parse.add_argument("--often", type=int, default=7, help="repetitions of w1, w32, direct and rate")
    parse.add_argument("--seldom", type=int, default=5, help="repetitions of the others")
    parse.add_argument("--quick", action="store_true",
                       help="few connections, one repetition: tries the script, measures nothing")
    found = parse.parse_args()
    found.out = os.path.abspath(found.out)
    found.peers_tmp = os.path.abspath(found.peers_tmp or os.path.join(found.out, "peers"))
    found.only, found.loads = found.only.split(","), found.loads.split(",")
    unknown = set(found.loads) - set(loads.FRESH) - set(loads.WARM)
    if unknown:
        parse.error(f"no such load: {', '.join(sorted(unknown))}")
    if found.baseline and "baseline" not in found.only:
        found.only.insert(found.only.index("belfry") + 1 if "belfry" in found.only else 0, "baseline")
    if found.quick:
        found.often = found.seldom = 1
    return found


def main():
    chosen = options()
    os.makedirs(chosen.out, exist_ok=True)
    os.makedirs(chosen.peers_tmp, exist_ok=True)
    lab.raise_files()
    runs, most = [], 0
    about = machine(chosen)
    try:
        with lab.Redis(chosen.out) as redis:
            bench = loads.Bench(chosen, redis)
            most = bench.most
            for turn in range(1, max(chosen.often, chosen.seldom) + 1):
                # Another one begins each turn, so that none is always first.
                first = turn % len(chosen.only)
                for name in chosen.only[first:] + chosen.only[:first]:
                    one_turn(bench, runs, turn, name)
    finally:
        # What was measured is kept, also where the rest was not.
        result = {"machine": about, "quick": chosen.quick, "most": most, "runs": runs, "targets": targets.judge(runs)}
        with open(os.path.join(chosen.out, "results.json"), "w") as f:
            json.dump(result, f, indent=1)
        text = tables(runs, chosen, most)
        with open(os.path.join(chosen.out, "table.md"), "w") as f:
            f.write(text)
        plots(runs, chosen.only, chosen.out)
        print("\n" + text)


if __name__ == "__main__":
    main()
