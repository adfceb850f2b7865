#!/usr/bin/env python3
"""Counts the instructions of the hot path, and compares them with what is written down.

Instructions repeat where times do not, so a change that makes the hot path dearer shows on any
machine. Needs valgrind.

    benches/count.py          # fails where a part takes more than is written in counts.json
    benches/count.py --save   # writes down what it takes now
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
BOOK = os.path.join(HERE, "counts.json")
# How often each part is done, and what one of its instructions is counted for.
PARTS = {
    "envelope_encode": (1000, "event"),
    "envelope_decode": (1000, "event"),
    "frame_encode": (1000, "event"),
    "registry_broadcast": (20, "broadcast to 1,000"),
    "registry_one_user": (1000, "event"),
    "jwt_verify_hs256": (200, "handshake"),
}
# Hash seeds and addresses differ from run to run, compilers from version to version.
TOLERANCE, OTHER_COMPILER = 0.10, 0.25


def compiler():
    return subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def build():
    command = ["cargo", "bench", "--locked", "--profile", "count", "--bench", "count", "--no-run",
               "--message-format", "json"]
    built = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(HERE))
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "count":
            return message["executable"]
    sys.exit("cargo has not said where the program is")


def count(program, part, times):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "callgrind")
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no",
                   "--toggle-collect=*count::counted*", program, part, str(times)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            sys.exit(f"{part} failed:\n{ran.stderr}")
        with open(out) as f:
            found = re.search(r"^(?:summary|totals): (\d+)", f.read(), re.MULTILINE)
    instructions = int(found.group(1)) if found else 0
    if not instructions:
        sys.exit(f"{part}: nothing was counted")
    return round(instructions / times)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--save", action="store_true", help="write down what it takes now")
    options = options.parse_args()
    program = build()
    now = {part: count(program, part, times) for part, (times, _) in PARTS.items()}
    if options.save:
        with open(BOOK, "w") as f:
            json.dump({"compiler": compiler(), "instructions": now}, f, indent=2)
            f.write("\n")
    with open(BOOK) as f:
        book = json.load(f)
    tolerance = TOLERANCE if book["compiler"] == compiler() else OTHER_COMPILER
    dearer = []
    print(f"instructions, at most {tolerance:.0%} more than counts.json ({book['compiler']})")
    for part, (_, unit) in PARTS.items():
        written = book["instructions"][part]
        change = now[part] / written - 1
        print(f"  {part:20} {now[part]:>10,} for each {unit:20} {change:+7.1%}")
        if change > tolerance:
            dearer.append(part)
    if dearer:
        sys.exit(f"dearer than written down: {', '.join(dearer)}. Find out why; if it has to be so, "
                 "run benches/count.py --save and say why in the commit.")


if __name__ == "__main__":
    main()
