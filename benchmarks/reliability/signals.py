"""Ctrl-C, SIGTERM and SIGHUP at a random moment of every command, to the whole process group as a terminal sends them.

The command ends, with the code of the signal or what it had done by then; it shows no traceback, and no process lives on. The
next run of the same command succeeds and leaves nothing behind. A training saves, and goes on with --c.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.reliability import runner
from benchmarks.reliability.campaign import Case, scene
from benchmarks.reliability.commands import COMMANDS, Command, result_of
from benchmarks.reliability.damage import reference
from benchmarks.reliability.scenes import environment
from benchmarks.reliability.tool_kills import after
from benchmarks.reliability.training_kills import COMMAND, FOLD, WHOLE

TITLE = "Signals"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = 75
"""The exit code of a training that has saved and can go on with --c."""


def interrupted(command: Command, number: signal.Signals, seed: int, folder: Path) -> str:
    """Send the signal at a random moment."""
    expected = reference(command)
    usual = scene(command.scene, folder / "usual")
    seconds = runner.run(command.arguments, usual, **environment(usual)).seconds
    work = scene(command.scene, folder)
    running = runner.start(command.arguments, work, **environment(work))
    time.sleep(float(np.random.default_rng(seed).uniform(0.05, 0.95)) * seconds)
    running.send(number, group=True)
    ended = running.wait(20)
    if alive := running.survivors():
        return f"{len(alive)} processes lived on"
    if ended.code not in (0, -number, 128 + number):
        return f"exit code {ended.code}: {ended.last_line[:300]}"
    if wrong := after(command, command.arguments, expected, ended, work):
        return wrong
    return "unclear: shows a traceback" if "Traceback" in ended.text else ""


def training_interrupted(number: signal.Signals, workers: int, seed: int, folder: Path) -> str:
    """Send the signal to a training after its first epoch has begun: it saves, and goes on to its end with --c."""
    work = scene("planned", folder)
    variables = {**environment(work), "nnUNet_n_proc_DA": str(workers)}
    running = runner.start(COMMAND.arguments[:-1], work, **variables)
    until = time.monotonic() + 60
    while not _log(work).count("Epoch ") and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng(seed).uniform(0, 0.3)))
    running.send(number, group=workers == 0)
    ended = running.wait()
    if alive := running.survivors():
        return f"{len(alive)} processes lived on"
    if ended.code not in (STOPPED, 0):
        return f"exit code {ended.code}: {ended.last_line[:300]}"
    again = runner.run(COMMAND.arguments, work, **environment(work))
    made = result_of(COMMAND, work).get(f"{FOLD}/checkpoint_final.pth", "no final checkpoint")
    return "" if again.code == 0 and made == WHOLE else f"then {again.code}, {made}: {again.last_line[:200]}"


def _log(work: Path) -> str:
    return "".join(path.read_text() for path in (work / FOLD).glob("training_log*.txt"))


def cases(seed: int) -> Sequence[Case]:
    """Every command with each of the signals; trainings without and with data loading processes."""
    found = []
    for place, command in enumerate(command for command in COMMANDS if not command.name.startswith("training")):
        for number in SIGNALS:
            attempt = partial(interrupted, command, number, 1000 * seed + place)
            found.append(Case(number.name, command.name, attempt))
    for number in SIGNALS:
        for workers in (0, 0, 2):
            attempt = partial(training_interrupted, number, workers, 1000 * seed + len(found))
            name = f"training {len(found)}, {workers} data loading processes"
            found.append(Case(f"{number.name}, trainings", name, attempt))
    return found
