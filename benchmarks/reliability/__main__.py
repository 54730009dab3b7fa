"""Run campaigns: python -m benchmarks.reliability [NAMES] [--only TEXT] [--every N] [--seed N] [--processes N]."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.reliability import runner
from benchmarks.reliability.campaign import RESULTS, campaign, summary, with_faults

NAMES = (
    "damage",
    "training_kills",
    "tool_kills",
    "faults",
    "bad_inputs",
    "hostile",
    "concurrency",
    "signals",
    "load",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=f"which (all): {', '.join(NAMES)}"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", default="", help="only cases whose group and name contain this; no results are written"
    )
    parser.add_argument("--every", type=int, default=1, help="only each so many-th case; no results are written")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for NAME.json")
    parser.add_argument("--summary", action="store_true", help="only print the table of results that are there")
    options = parser.parse_args()
    if options.summary:
        print(summary(options.out, NAMES))
        return
    with_faults(sys.argv[1:])
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(os.environ["RELIABILITY_SCRATCH"])
    runner.warm_up()
    for name in options.names or NAMES:
        module = import_module(f"benchmarks.reliability.{name}")
        campaign(name, module.TITLE, module.cases, options)


if __name__ == "__main__":
    main()
