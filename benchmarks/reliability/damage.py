"""Damage every input of every command at seeded places: the command refuses it, or its result is that of the undamaged input.

What cannot be told from a sound input is excepted, and counted: a file without checksums in which a value was replaced by
another value of the same kind. Those are voxels of an image that is neither compressed nor cut, and text in which a number
became another number or a word another word (`is_another_input`).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import yaml

from benchmarks.reliability import runner
from benchmarks.reliability.campaign import Case, scene
from benchmarks.reliability.commands import COMMANDS, Command, result_of
from benchmarks.reliability.runner import Outcome
from benchmarks.reliability.scenes import environment

TITLE = "Damaged inputs"
PLACES = 50
"""Places at which every input is damaged."""
STRUCTURED = (".json", ".jsonl", ".yaml")
TEXTS = (*STRUCTURED, ".csv", ".txt")
KINDS = ("flip", "cut", "zero", "insert", "delete")
REPLACEMENTS: dict[str, Any] = {"null": None, "list": [], "number": -7.5, "text": "damaged", "object": {"damaged": 1}}
FREE = ("labels", "channel_names", "regions", "confusion", "statistics", "failed", "arch_kwargs", "tolerances")
"""Keys of mappings, and names of files, whose own keys are chosen by users."""
UNCOMPRESSED = {".mha": (b"CompressedData = False", b"LOCAL\n"), ".nrrd": (b"encoding: raw", b"\n\n")}
"""Formats that may be compressed -> what says that they are not, and what the voxels come after."""
VOXELS_FROM = {".nii": 352, ".raw": 0}
"""Formats without compression -> where their voxels begin."""


@dataclass(frozen=True)
class Damaged:
    """A damaged content, with what was done to it in a few words."""

    what: str
    content: bytes


def damages(file: str, content: bytes, seed: int, places: int = PLACES) -> Iterator[Damaged]:
    """Yield so many damaged versions of a file; the same for the same name, content and seed."""
    rng = np.random.default_rng([seed, crc32(file.encode())])
    for number in range(places):
        if file.endswith(STRUCTURED) and number % 2:
            yield _replaced(file, content, rng, tuple(REPLACEMENTS)[number // 2 % len(REPLACEMENTS)])
        else:
            yield _damaged(content, rng, KINDS[number // (1 + file.endswith(STRUCTURED)) % len(KINDS)])


def _damaged(content: bytes, rng: np.random.Generator, kind: str) -> Damaged:
    at, length = int(rng.integers(len(content))), int(rng.integers(1, 17))
    before, after = content[:at], content[at + length :]
    if kind == "flip":
        changed = before + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
    elif kind == "cut":
        changed = before
    elif kind == "zero":
        changed = before + bytes(len(content) - len(before) - len(after)) + after
    elif kind == "insert":
        changed = before + rng.bytes(length) + content[at:]
    else:
        changed = before + after
    return Damaged(f"{kind} at {at} of {len(content)}", changed)


def _replaced(file: str, content: bytes, rng: np.random.Generator, kind: str) -> Damaged:
    """A value of a JSON or YAML file becomes one of another type."""
    lines = content.decode().splitlines()
    number = int(rng.integers(len(lines))) if file.endswith(".jsonl") else None
    document = _parsed(file, content) if number is None else json.loads(lines[number])
    holders = list(_holders(document))
    holder, key = holders[int(rng.integers(len(holders)))]
    if _type(holder[key]) == _type(REPLACEMENTS[kind]) or (kind == "number" and _type(holder[key]) == "int"):
        kind = "object" if kind != "object" else "null"
    holder[key] = REPLACEMENTS[kind]
    if number is not None:
        lines[number] = json.dumps(document)
        text = "\n".join(lines) + "\n"
    else:
        text = yaml.safe_dump(document) if file.endswith(".yaml") else json.dumps(document)
    return Damaged(f"{key!r} becomes {kind}", text.encode())


def _holders(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or mapping in a document, with each of its indices or keys."""
    for key, child in list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _holders(child)


def _parsed(file: str, content: bytes) -> Any:
    text = content.decode()
    if file.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if file.endswith(".yaml"):
        return yaml.safe_load(text)
    return json.loads(text) if file.endswith(".json") else [line.split(",") for line in text.splitlines()]


def _type(value: Any) -> str:
    return {dict: "object", list: "list", type(None): "null", str: "text"}.get(type(value), type(value).__name__)


def _paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every place in a document with the type of its value. Indices and freely chosen keys count as one place."""
    yield path, _type(value)
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _paths(child, (*path, "*" if path and path[-1] in FREE else str(key)))
    if isinstance(value, list):
        for child in value:
            yield from _paths(child, (*path, "*"))


def is_another_input(file: str, before: bytes, after: bytes) -> bool:
    """Whether damage made another input that nothing can tell from a sound one.

    That is a file that says nothing about its own content (no checksum), and has the form that it had: an image without
    compression whose size and header are as before; a text whose values have the types that they had, at the places that
    they had.
    """
    suffix = Path(file).suffix
    mark = UNCOMPRESSED.get(suffix, (b"", b""))
    if suffix in VOXELS_FROM or (mark[0] and mark[0] in before):
        start = VOXELS_FROM.get(suffix, before.find(mark[1]) + len(mark[1]))
        return len(before) == len(after) and before[:start] == after[:start]
    if suffix not in TEXTS:
        return False
    try:
        known, found = (set(_paths(_parsed(file, content), (Path(file).stem,))) for content in (before, after))
    except (ValueError, yaml.YAMLError, RecursionError):
        return False
    return all((path, kind) in known or (kind == "int" and (path, "float") in known) for path, kind in found)


def verdict(command: Command, file: str, before: bytes, after: bytes, outcome: Outcome, same: bool) -> str:
    """Return what is wrong with how a command ended on a damaged file, in the words of `Case.attempt`."""
    if outcome.code is None:
        return f"no answer in {outcome.seconds:.0f} s"
    if outcome.code < 0:
        return f"ended by signal {-outcome.code}"
    if outcome.code == 0:
        if same:
            return ""
        return "fine: another input" if is_another_input(file, before, after) else "exit code 0 and another result"
    if command.name.startswith("training"):  # nnU-Net's command shows tracebacks
        return ""
    if outcome.is_unexplained:
        return f"unclear: {outcome.last_line[:300]}"
    named = [file, Path(file).name, Path(file).parent.name, re.split(r"(_\d{4})?\.", Path(file).name)[0]]
    return (
        ""
        if any(name in outcome.text for name in named)
        else f"unclear, does not name the file: {outcome.last_line[:300]}"
    )


def compare(command: Command, folder: Path, reference: dict[str, str], outcome: Outcome) -> bool:
    """Whether a command that succeeded has the result of the undamaged input."""
    try:
        return result_of(command, folder, outcome.text) == reference
    except (OSError, ValueError):
        return False


def _reference_of(command: Command, folder: Path) -> dict[str, str]:
    work = scene(command.scene, folder)
    outcome = runner.run(command.arguments, work, **environment(work))
    if outcome.code != 0:
        raise RuntimeError(f"{command.name} on sound inputs ended with {outcome.code}: {outcome.text[-2000:]}")
    return result_of(command, work, outcome.text)


_references: dict[str, dict[str, str]] = {}


def reference(command: Command) -> dict[str, str]:
    """Return the result of a command on undamaged inputs, which is computed once in each process."""
    if command.name not in _references:
        folder = Path(tempfile.mkdtemp(prefix="reference"))
        try:
            _references[command.name] = _reference_of(command, folder)
        finally:
            shutil.rmtree(folder)
    return _references[command.name]


def attempt(command: Command, file: str, damaged: Damaged, folder: Path) -> str:
    """Run a command with one file damaged, in a process of its own."""

    def run(work: Path) -> Outcome:
        return runner.run(command.arguments, work, **environment(work))

    return judged(command, file, damaged, scene(command.scene, folder), reference(command), run)


def judged(
    command: Command,
    file: str,
    damaged: Damaged,
    work: Path,
    expected: dict[str, str],
    run: Callable[[Path], Outcome],
) -> str:
    """Damage one file of a scene, run the command there by a function, and return what is wrong, as `Case.attempt` does."""
    before = (work / file).read_bytes()
    (work / file).unlink()  # it may be a link to the scene's own
    (work / file).write_bytes(damaged.content)
    outcome = run(work)
    same = outcome.code == 0 and compare(command, work, expected, outcome)
    return verdict(command, file, before, damaged.content, outcome, same)


def cases(seed: int) -> Sequence[Case]:
    """Every input of every command, damaged at `PLACES` places."""
    found = []
    for command in COMMANDS:
        for file in command.reads:
            content = scene(command.scene).joinpath(file).read_bytes()
            for number, damaged in enumerate(damages(file, content, seed)):
                name = f"{file} {number}: {damaged.what}"
                if len(content) < 2**20:
                    trial = partial(attempt, command, file, damaged)
                else:  # too large to hold fifty of them
                    trial = partial(_attempt_large, command, file, number, seed)
                found.append(Case(command.name, name, trial))
    return found


def _attempt_large(command: Command, file: str, number: int, seed: int, folder: Path) -> str:
    content = scene(command.scene).joinpath(file).read_bytes()
    damaged = next(entry for index, entry in enumerate(damages(file, content, seed)) if index == number)
    return attempt(command, file, damaged, folder)
