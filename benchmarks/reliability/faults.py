"""Disks that are full or broken and folders that may not be written, for every command that writes.

Either a command works as if nothing were wrong, or it ends with a code that is not 0 and names the file or folder. What
was there stays, and nothing incomplete gets its final name. When the disk is whole again, the same command succeeds and
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.reliability import runner
from benchmarks.reliability.campaign import Case, leftovers, scene
from benchmarks.reliability.commands import Command, named, result_of
from benchmarks.reliability.damage import reference
from benchmarks.reliability.scenes import environment

TITLE = "Faults of disks and folders"
COMMANDS = (
    *(
        "evaluate",
        "leaderboard",
        "confusion",
        "postprocess",
        "postprocess-fit",
        "submit",
        "convert a folder",
        "convert .zip",
    ),
    *("predict-onnx", "explain", "export", "import-released", "plans apply", "training, continued"),
)
HARMLESS = {"no hard links": ("link", "EPERM"), "no locks": ("flock", "ENOLCK"), "no sync": ("fsync", "EINVAL")}
"""Faults with which every command works."""
FAILING = {
    "full at a write": ("write", "ENOSPC"),
    "cut at a write": ("write", "short"),
    "broken at a write": ("write", "EIO"),
    "over quota at a write": ("write", "EDQUOT"),
    "full at a sync": ("fsync", "ENOSPC"),
    "broken at a sync": ("fsync", "EIO"),
    "no rename": ("rename", "EIO"),
}
WAYS_OUT = ("cannot be written", "make room", "choose another")
"""What a message about a disk says, at least one of these."""
FREE_BYTES = 12_288


def a_call_fails(command: Command, calls: str, error: str, seed: int, folder: Path) -> str:
    """From a random call on, all calls of one kind below the scene fail, as the file system's own do."""
    expected = reference(command)
    fault = {"RELIABILITY_CALLS": calls, "RELIABILITY_COUNT": str(folder / "calls"), "RELIABILITY_FAULT": error}
    usual = scene(command.scene, folder / "usual")
    watched = {**fault, "RELIABILITY_AFTER": "1000000", "RELIABILITY_PATH": str(usual)}
    runner.run(command.arguments, usual, **environment(usual), **watched)
    count = (folder / "calls").stat().st_size if (folder / "calls").exists() else 0
    (folder / "calls").unlink(missing_ok=True)
    harmless = (calls, error) in HARMLESS.values()
    after = 0 if harmless or not count else int(np.random.default_rng(seed).integers(count))
    work = scene(command.scene, folder)
    there = _files(work)
    broken = {**fault, "RELIABILITY_AFTER": str(after), "RELIABILITY_PATH": str(work)}
    ended = runner.run(command.arguments, work, **environment(work), **broken)
    if harmless and ended.code != 0:
        return f"ended with {ended.code}: {ended.last_line[:300]}"
    return _judged(command, work, expected, ended, there, affected=after < count)


def disk_is_full(command: Command, seed: int, folder: Path) -> str:
    """The scene lies on a disk of its own, of which some kilobytes are free."""
    expected = reference(command)
    with disk(folder) as place:
        work = scene(command.scene, place)
        filler = place / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            file.truncate(0)
            while shutil.disk_usage(place).free > FREE_BYTES:
                file.write(bytes(4096))
        there = _files(work)
        ended = runner.run(command.arguments, work, **environment(work))
        filler.unlink()
        return _judged(command, work, expected, ended, there)


def folder_is_read_only(command: Command, seed: int, folder: Path) -> str:
    """The scene lies on a disk that may only be read."""
    expected = reference(command)
    with disk(folder) as place:
        work = scene(command.scene, place)
        there = _files(work)
        _mount("-o", "remount,ro", str(place))
        ended = runner.run(command.arguments, work, **environment(work))
        _mount("-o", "remount,rw", str(place))
        return _judged(command, work, expected, ended, there)


def parent_is_a_file(command: Command, seed: int, folder: Path) -> str:
    """A file has the name of the folder that the results belong in."""
    work = scene(command.scene, folder)
    target = work / command.writes
    if target.parent != work:
        return "fine: lies in nnU-Net's own folders"
    arguments = [f"file/{word}" if word == command.writes else word for word in command.arguments]
    (work / "file").write_text("mine")
    ended = runner.run(arguments, work, **environment(work))
    if ended.code not in (1, 2) or ended.is_unexplained or "file" not in ended.text:
        return f"unclear, {ended.code}: {ended.last_line[:300]}"
    if (work / "file").read_text() != "mine":
        return "the file was changed"
    return ""


@contextmanager
def disk(folder: Path, megabytes: int = 160) -> Iterator[Path]:
    """Mount a disk in memory. Only root can do that."""
    place = folder / "disk"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"no disk can be mounted here, which needs root: {done.stderr.strip()}")


def _files(folder: Path) -> dict[str, int]:
    """Files below a folder with their sizes."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _judged(
    command: Command,
    work: Path,
    expected: dict[str, str],
    ended: runner.Outcome,
    there: dict[str, int],
    affected: bool = True,
) -> str:
    """Look at how a command ended on a broken disk, then run it again on a whole one."""
    if ended.code is None or ended.code < 0:
        return f"ended with {ended.code}: {ended.last_line[:300]}"
    made = result_of(command, work, ended.text) if command.result else {}
    if ended.code == 0 and made != expected:
        return "exit code 0 and another result"
    if ended.code != 0:
        incomplete = [name for name, content in made.items() if name not in there and expected.get(name) != content]
        if incomplete and not command.name.startswith("training"):
            return f"ended with {ended.code}, and incomplete under their final names: {', '.join(incomplete[:3])}"
        lost = [name for name in there if not (work / name).is_file() and "checkpoint_" not in name]
        if lost:
            return f"ended with {ended.code}, and lost: {', '.join(lost[:3])}"
    again = runner.run(command.arguments, work, **environment(work))
    if again.code != 0 and "--resume" in again.text:
        again = runner.run([*command.arguments, "--resume"], work, **environment(work))
    same = result_of(command, work, again.text) == expected
    if not same or (again.code != 0 and ended.code != 0):
        return f"on the broken disk {ended.code}, then {again.code}, same result {same}: {again.last_line[:200]}"
    if left := leftovers(work):
        return f"left behind: {', '.join(left[:3])}"
    if ended.code == 0:
        return "" if affected else "fine: makes no such calls"
    is_training = command.name.startswith("training")
    if ended.is_unexplained and not is_training:
        return f"unclear: {ended.last_line[:300]}"
    if not any(words in ended.text for words in WAYS_OUT) and not is_training:
        return f"unclear: {ended.last_line[:300]}"
    return ""


def cases(seed: int) -> Sequence[Case]:
    """Every fault for a choice of commands that write."""
    found = []
    for number, name in enumerate(COMMANDS):
        command = named(name)
        own = 100 * seed + number
        kinds = {**HARMLESS, **FAILING}
        for kind, (calls, error) in kinds.items():
            found.append(Case(kind, name, partial(a_call_fails, command, calls, error, own)))
        if os.geteuid() == 0:
            found.append(Case("full disk", name, partial(disk_is_full, command, own)))
            found.append(Case("read-only disk", name, partial(folder_is_read_only, command, own)))
        if not name.startswith("training"):
            found.append(Case("a file in place of a folder", name, partial(parent_is_a_file, command, own)))
    return found
