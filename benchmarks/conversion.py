"""Measure the time of `nnunet-glims convert brats`, compared with a plain copy of the same files.

    python -m benchmarks.conversion CASES SCRATCH [--cases 42] [--repeats 3]

CASES is a folder of BraTS 2018 cases, which are copied under new names until there are enough. All files have been read
once before the measurement, so that both read them from memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

from benchmarks.cpu import processor


def release(cases: Path, folder: Path, count: int) -> Path:
    given = sorted(path for path in cases.iterdir() if path.is_dir())
    for index, case in zip(range(count), cycle(given), strict=False):
        name = f"Brats18_Copy{index:03d}_1"
        (folder / name).mkdir(parents=True)
        for file in case.iterdir():
            shutil.copyfile(file, folder / name / file.name.replace(case.name, name))
    return folder


def timed(run) -> float:
    started = time.perf_counter()
    run()
    os.sync()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--cases", type=int, default=42)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    source = release(arguments.folder, arguments.scratch / "release", arguments.cases)
    raw, copy = arguments.scratch / "raw", arguments.scratch / "copy"
    command = [sys.executable, "-m", "nnunet_glims", "convert", "brats", str(source), "-d", "137"]
    copies, conversions = [], []
    for _ in range(arguments.repeats):
        copies.append(timed(lambda: shutil.copytree(source, copy)))
        raw.mkdir()
        environment = {**os.environ, "nnUNet_raw": str(raw)}
        conversions.append(
            timed(lambda env=environment: subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL))
        )
        shutil.rmtree(copy)
        shutil.rmtree(raw)
    copying, converting = statistics.median(copies), statistics.median(conversions)
    megabytes = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) / 1e6
    print(f"{arguments.cases} cases, {megabytes:.0f} MB, on {processor()}, median of {arguments.repeats}")
    print(
        f"copy {copying:.1f} s, convert {converting:.1f} s: {(converting - copying) / arguments.cases:.2f} s a case more"
    )


if __name__ == "__main__":
    main()
