"""The same command twice at once, trainings of one fold at once, and kernels that are compiled by many at once.

One of two does the work, or both do it with the same result; whoever does not is told so. The result is that of one run, it is
complete, and nothing is left behind.
"""

from __future__ import annotations

import json
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
from benchmarks.reliability.tool_kills import THERE
from benchmarks.reliability.training_kills import COMMAND, FOLD, WHOLE
from nnunet_glims.nnunet.training_log import TRAINING_LOCK

TITLE = "Concurrency"
BUSY = (*THERE, "another process", "at work")
"""What a command may say that leaves the work to another one."""


def at_once(command: Command, delay: float, count: int, folder: Path) -> str:
    """Start a command so many times, each a part of its usual time after the one before."""
    expected = reference(command)
    usual = scene(command.scene, folder / "usual")
    seconds = runner.run(command.arguments, usual, **environment(usual)).seconds
    work = scene(command.scene, folder)
    running = []
    for _ in range(count):
        running.append(runner.start(command.arguments, work, **environment(work)))
        time.sleep(delay * seconds)
    ended = [process.wait() for process in running]
    codes = [outcome.code for outcome in ended]
    if 0 not in codes:
        return f"{codes}: {' / '.join(outcome.last_line[:150] for outcome in ended)}"
    if result_of(command, work, ended[codes.index(0)].text) != expected:
        return f"{codes}: another result"
    if left := leftovers(work):
        return f"{codes}: left behind: {', '.join(left[:3])}"
    for outcome in ended:
        if outcome.code is None or outcome.code < 0:
            return f"ended with {outcome.code}"
        if outcome.code and (outcome.is_unexplained or not any(word in outcome.text for word in BUSY)):
            return f"unclear: {outcome.last_line[:300]}"
    return f"fine: {sorted(codes)}"


def trainings_of_one_fold(stopped: bool, folder: Path) -> str:
    """Two trainings of one fold: one is refused, the other is whole; the first one may stand still while the second starts."""
    work = scene("planned", folder)
    running = [runner.start(COMMAND.arguments[:-1], work, **environment(work))]
    if stopped:
        until = time.monotonic() + 60
        while not (work / FOLD / TRAINING_LOCK).exists() and time.monotonic() < until:
            time.sleep(0.01)
        running[0].send(signal.SIGSTOP)
    running.append(runner.start(COMMAND.arguments[:-1], work, **environment(work)))
    ended = [running[1].wait()]
    running[0].send(signal.SIGCONT)
    ended.append(running[0].wait())
    codes = sorted(outcome.code or 0 for outcome in ended)
    made = result_of(COMMAND, work).get(f"{FOLD}/checkpoint_final.pth", "no final checkpoint")
    if made != WHOLE or codes[0] != 0:
        return f"{codes}: {made}: {' / '.join(outcome.last_line[:200] for outcome in ended)}"
    if codes == [0, 0] and not stopped:
        return "fine: one after the other"
    if codes == [0, 0]:
        logs = list((work / FOLD).glob("training_log*.txt"))
        return f"both have trained: {len(logs)} logs in one folder"
    refused = next(outcome for outcome in ended if outcome.code)
    return "" if any(word in refused.last_line for word in BUSY) else f"unclear: {refused.last_line[:300]}"


def kernels_at_once(count: int, folder: Path) -> str:
    """So many processes compile the kernels at once, for an empty cache."""
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    ended = [process.wait() for process in [runner.start(["doctor", "--json"], folder, **cache) for _ in range(count)]]
    for outcome in ended:
        findings = {finding["topic"]: finding for finding in json.loads(outcome.text[outcome.text.find("[") :])}
        if findings["CPU kernels"]["verdict"] != "ok":
            return f"{findings['CPU kernels']}"
    kept = [path.name for path in (folder / "cache").rglob("*") if path.is_file() and ".so" in path.name]
    return "" if len(kept) == 1 else f"the cache has {kept}"


def cases(seed: int) -> Sequence[Case]:
    """Every command that writes: twice at the same moment, and with a delay; three conversions; trainings; kernels."""
    rng = np.random.default_rng(seed)
    found = []
    for command in COMMANDS:
        if command.writes and not command.name.startswith("training"):
            found.append(Case("the same moment", command.name, partial(at_once, command, 0.0, 2)))
            found.append(
                Case("a moment later", command.name, partial(at_once, command, float(rng.uniform(0.1, 0.9)), 2))
            )
        if command.name.startswith("convert"):
            found.append(Case("three at once", command.name, partial(at_once, command, 0.0, 3)))
    for stopped, when in ((False, "at the same moment"), (True, "while the first one trains")):
        found.append(Case("two trainings of one fold", when, partial(trainings_of_one_fold, stopped)))
    for count in (2, 6):
        found.append(Case("kernels compiled at once", f"by {count}", partial(kernels_at_once, count)))
    return found
