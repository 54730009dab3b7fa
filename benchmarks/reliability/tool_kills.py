"""Kill every command that writes, at random moments and at random calls to the system; then run it again.

The second run must succeed with the result of a run that nobody killed, or find this result complete and say that it is there.
Neither of them may leave working files behind, nor a process.
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
from benchmarks.reliability.commands import COMMANDS, Command, result_of
from benchmarks.reliability.damage import reference
from benchmarks.reliability.scenes import environment

TITLE = "Kills of tools"
CALLS = "write,fsync,rename,link,open"
WITH_WORKERS = ("evaluate", "postprocess", "postprocess-fit", "convert .tar")
THERE = ("already", "exists", "is there", "is taken")
"""What a command may say about a result that is complete."""


def killed_at_a_moment(command: Command, seed: int, signal_number: int, workers: int, folder: Path) -> str:
    """Send a signal at a random moment of the time that the command takes."""
    rng = np.random.default_rng(seed)
    expected = reference(command)
    arguments = [*command.arguments, *(["--workers", str(workers)] if workers > 1 else [])]
    usual = scene(command.scene, folder / "usual")
    seconds = runner.run(arguments, usual, **environment(usual)).seconds
    work = scene(command.scene, folder)
    running = runner.start(arguments, work, **environment(work))
    time.sleep(float(rng.uniform(0.05, 0.95)) * seconds)
    running.send(signal_number)
    ended = running.wait()
    if alive := running.survivors():
        return f"{len(alive)} processes lived on"
    return after(command, arguments, expected, ended, work)


def killed_at_a_call(command: Command, seed: int, folder: Path) -> str:
    """Kill the command at one of the calls with which it writes; which one is drawn from those that a whole run makes."""
    expected = reference(command)
    fault = {
        "RELIABILITY_FAULT": "kill",
        "RELIABILITY_CALLS": CALLS,
        "RELIABILITY_AFTER": "1000000",
        "RELIABILITY_COUNT": str(folder / "calls"),
    }
    usual = scene(command.scene, folder / "usual")
    runner.run(command.arguments, usual, **environment(usual), **fault, RELIABILITY_PATH=str(usual))
    calls = (folder / "calls").stat().st_size
    (folder / "calls").unlink()
    fault["RELIABILITY_AFTER"] = str(np.random.default_rng(seed).integers(calls))
    work = scene(command.scene, folder)
    ended = runner.run(command.arguments, work, **environment(work), **fault, RELIABILITY_PATH=str(work))
    if ended.code != -signal.SIGKILL:
        return f"the attempt itself failed: {ended.code} instead of a kill: {ended.last_line}"
    return after(command, command.arguments, expected, ended, work)


def after(command: Command, arguments: list[str], expected: dict[str, str], ended: runner.Outcome, work: Path) -> str:
    """Run a command again whose first run ended so; return what is wrong with its result and with what is left."""
    again = runner.run(arguments, work, **environment(work))
    if again.code != 0 and "--resume" in again.text:
        again = runner.run([*arguments, "--resume"], work, **environment(work))
    same = result_of(command, work, again.text) == expected
    how = f"first run {ended.code}, second run {again.code}"
    if again.code == 0 and not same:
        found = result_of(command, work, again.text)
        differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        return f"{how}: another result in {', '.join(sorted(differing)[:5])}"
    if again.code != 0 and not (same and any(word in again.text for word in THERE)):
        return f"{how}: {again.last_line[:300]}"
    if left := leftovers(work):
        return f"{how}, left behind: {', '.join(left[:5])}"
    return "" if ended.code else "fine: had ended before"


def cases(seed: int) -> Sequence[Case]:
    """Each command that writes: killed at a random moment, and at a random call; some with worker processes as well."""
    found = []
    for number, command in enumerate(command for command in COMMANDS if command.writes):
        own = 1000 * seed + number
        if command.name.startswith("training"):
            continue
        moment = partial(killed_at_a_moment, command, own, signal.SIGKILL, 1)
        found.append(Case("at a moment", command.name, moment))
        found.append(Case("at a call", command.name, partial(killed_at_a_call, command, own)))
        if command.name in WITH_WORKERS:
            attempt = partial(killed_at_a_moment, command, own, signal.SIGKILL, 2)
            found.append(Case("with two worker processes", command.name, attempt))
    return found
