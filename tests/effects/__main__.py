"""Measure every analysis on its nulls and planted effects, and write docs/nulls.md: `python -m tests.effects`."""

from __future__ import annotations

import argparse
import datetime
import sys
import time

from tests.effects.page import store, stored, worst
from tests.effects.playing import MOST_FALSE, analyses, measured


def main() -> int:
    """Run the command; the exit status is 1 where an analysis speaks too often on nulls, or misses the strongest."""
    parser = argparse.ArgumentParser(prog="python -m tests.effects", description=__doc__)
    parser.add_argument("names", nargs="*", help="analyses; without any, all for which something is planted")
    parser.add_argument("--nulls", type=int, default=200, help="nulls of each kind")
    parser.add_argument("--planted", type=int, default=40, help="planted effects of each strength")
    asked = parser.parse_args()
    there = analyses()
    if unknown := sorted({*asked.names} - {*there}):
        parser.error(f"nothing is planted for {', '.join(unknown)}; there are {', '.join(there)}")
    bad = []
    for name in asked.names or there:
        began = time.monotonic()
        entry = measured(name, num_nulls=asked.nulls, num_planted=asked.planted)
        entry["date"] = datetime.date.today().isoformat()
        store({**stored(), name: entry})
        null, last = worst(entry), entry["planted"][-1]
        if null["upper_bound"] > MOST_FALSE or last["supported"] < last["n"]:
            bad.append(name)
        power = " ".join(f"{row['supported']}/{row['n']}" for row in entry["planted"])
        print(
            f"{name}: {null['supported']} of {null['n']} nulls supported (at most {null['upper_bound']:.1%}), "
            f"planted {power}, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    if bad:
        print(f"not as they should be: {', '.join(bad)}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
