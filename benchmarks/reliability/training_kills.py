"""Kill trainings, half of them in the middle of writing a checkpoint, and continue them with --c.

Each training is killed three times in a row, then it must end with finite weights, as many epochs as it was asked for, its
validation, and nothing left behind. Trainings with data loading processes are killed as well: these must not outlive them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.reliability import runner
from benchmarks.reliability.campaign import Case, leftovers, scene
from benchmarks.reliability.commands import named, result_of
from benchmarks.reliability.scenes import DATASET, TRAINED, environment

TITLE = "Kills of trainings"
KILLS = 3
TRAININGS = 6
"""Trainings of each kind: killed at any time, and killed in mid-checkpoint."""
CALLS = "write,fsync,rename,link,open"
COMMAND = named("training, continued")
FOLD = f"{TRAINED}/fold_0"
WHOLE = "epoch 3, 3 losses, finite: True"


def killed_at_any_time(seed: int, folder: Path) -> str:
    """Kill a training at random moments of the seconds that it takes."""
    rng = np.random.default_rng(seed)
    work, kills = scene("planned", folder), 0
    usual = runner.run(
        COMMAND.arguments[:-1], scene("planned", folder / "usual"), **environment(folder / "usual/scene")
    )
    for attempt in range(4 * KILLS):
        if kills == KILLS or (work / FOLD / "checkpoint_final.pth").exists():
            break
        running = runner.start(_arguments(attempt), work, **environment(work))
        time.sleep(float(rng.uniform(0.1, 0.9)) * usual.seconds)
        running.send(signal.SIGKILL)
        ended = running.wait()
        if ended.code not in (0, -signal.SIGKILL):
            return f"after {kills} kills the training ended with {ended.code}: {ended.last_line[:300]}"
        kills += ended.code != 0
    return _completed(work, kills)


def killed_in_mid_checkpoint(seed: int, folder: Path) -> str:
    """Kill a training at one of the calls to the system with which it writes a checkpoint."""
    rng = np.random.default_rng(seed)
    work, kills, counter = scene("planned", folder), 0, folder / "calls"
    for attempt in range(KILLS):
        counter.unlink(missing_ok=True)
        fault = {
            "RELIABILITY_FAULT": "kill",
            "RELIABILITY_CALLS": CALLS,
            "RELIABILITY_PATH": "checkpoint_",
            "RELIABILITY_AFTER": str(rng.integers(0, 24)),
            "RELIABILITY_COUNT": str(counter),
        }
        ended = runner.run(_arguments(attempt), work, **environment(work), **fault)
        if ended.code not in (0, -signal.SIGKILL):
            return f"after {kills} kills the training ended with {ended.code}: {ended.last_line[:300]}"
        kills += ended.code != 0
    return _completed(work, kills)


def killed_with_data_loading_processes(seed: int, folder: Path) -> str:
    """Kill a training that has two data loading processes; none of them may live on."""
    rng = np.random.default_rng(seed)
    work = scene("planned", folder)
    running = runner.start(_arguments(0), work, **environment(work), nnUNet_n_proc_DA="2")
    until = time.monotonic() + 60
    log = work / FOLD
    while not list(log.glob("training_log*")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(float(rng.uniform(0, 1)))
    running.send(signal.SIGKILL)
    ended = running.wait()
    alive = running.survivors()
    if ended.code != -signal.SIGKILL:
        return f"it had ended with {ended.code} before: {ended.last_line[:300]}"
    return f"{len(alive)} data loading processes lived on" if alive else _completed(work, 1)


def _arguments(attempt: int) -> list[str]:
    return COMMAND.arguments if attempt else COMMAND.arguments[:-1]


def _completed(work: Path, kills: int) -> str:
    """Continue the training to its end and look at what it left."""
    ended = runner.run(COMMAND.arguments, work, **environment(work))
    if ended.code != 0:
        return f"after {kills} kills the training ended with {ended.code}: {ended.last_line[:300]}"
    made = result_of(COMMAND, work).get(f"{FOLD}/checkpoint_final.pth", "no final checkpoint")
    if made != WHOLE:
        return f"after {kills} kills: {made} instead of {WHOLE}"
    if not (work / FOLD / "validation/summary.json").exists():
        return "without validation"
    left = leftovers(work / f"results/{DATASET}")
    return f"left behind: {', '.join(left)}" if left else f"fine: {kills} kills"


def cases(seed: int) -> Sequence[Case]:
    """Trainings that are killed `KILLS` times each, by kind; and four with data loading processes."""
    found = []
    for kind, attempt in (("at any time", killed_at_any_time), ("in mid-checkpoint", killed_in_mid_checkpoint)):
        for number in range(TRAININGS):
            name = f"training {number}, killed {KILLS} times"
            found.append(Case(kind, name, partial(attempt, 1000 * seed + number)))
    for number in range(4):
        attempt = partial(killed_with_data_loading_processes, 1000 * seed + number)
        found.append(Case("with data loading processes", f"training {number}", attempt))
    return found
