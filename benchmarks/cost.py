"""What five folds of BraTS 2021 cost for each network of a JSON file of measured step times, as a Markdown table.

    python -m benchmarks.cost FILE [--patch 128] [--batch 2] [--without NETWORK]

FILE is what `benchmarks.cpu` writes, or {"device": "...", "patch": 128, "batch": 2, "training_step_seconds": {"GLIMS": 0.2}},
with "forward_seconds" beside it where they were measured; a third of a training step where not. Times measured at another patch
or batch are scaled by voxels, and the table says so.

    hours = 5 · epochs · (iterations · step + validation iterations · forward) + cases · patches a case · mirrored · forward
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

FOLDS = 5
EPOCHS, ITERATIONS, VALIDATION_ITERATIONS = 1000, 250, 50
"""The length of nnU-Net's trainings, which is that of this package's recipes as well."""
CASES = 1251
"""The cases of BraTS 2021 with public labels. Each is predicted once, in the validation of its fold."""
PATCHES, MIRRORED = 8, 8
"""How many windows of 128³ cover a brain, and how often each is predicted."""


def read(path: Path) -> tuple[str, int, int, dict[str, tuple[float, float]]]:
    """Return device, patch, batch, and for each network the seconds of a training step and of a forward pass."""
    content: dict[str, Any] = json.loads(path.read_text())
    if "training_step_seconds" in content:
        steps = content["training_step_seconds"]
        forward = content.get("forward_seconds", {})
        seconds = {name: (step, forward.get(name, step / 3)) for name, step in steps.items()}
        return content["device"], content["patch"], content["batch"], seconds
    measured = content["seconds"].items()
    seconds = {name: (median(times["training step"]), median(times["forward"])) for name, times in measured}
    return content["machine"], content["patch"], 1, seconds


def hours(step: float, forward: float, batch: int) -> float:
    """Return the hours that five folds with their validation take, by the formula above."""
    training = FOLDS * EPOCHS * (ITERATIONS * step + VALIDATION_ITERATIONS * forward)
    return (training + CASES * PATCHES * MIRRORED * forward / batch) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--without", nargs="*", default=[], help="networks to leave out")
    options = parser.parse_args()
    device, patch, batch, seconds = read(options.file)
    scale = options.batch / batch * (options.patch / patch) ** 3
    print(f"{device}; {options.patch}³, batch {options.batch}", end="")
    print("\n" if scale == 1 else f", {scale:g} times the voxels that were measured ({patch}³, batch {batch})\n")
    print("| network | a step [s] | a fold [days] | five folds [days] |\n|---|---|---|---|")
    total = 0.0
    for name, (step, forward) in seconds.items():
        if name in options.without:
            continue
        days = hours(step * scale, forward * scale, options.batch) / 24
        total += days
        print(f"| {name} | {step * scale:.3g} | {days / FOLDS:,.1f} | {days:,.1f} |")
    print(f"| together | | | {total:,.1f} |")


if __name__ == "__main__":
    main()
