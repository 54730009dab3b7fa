"""Describe what a result was made from by named ingredients, which can be compared and shown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nnunet_glims.nnunet.plans.record import first_difference

Ingredients = dict[str, Any]
"""Name -> JSON value. Values are nested where messages should name a part of them, such as one training setting."""

TIMES = "times of change"
NEUTRAL_OPTIONS = {"-num_gpus": 1, "--npz": 0, "--c": 0, "--workers": 1, "-np": 1, "-npfp": 1, "-o": 1}
"""Options that change how fast something is made, not what; each with how many values follow. The device is none of them:
a recipe's precision may depend on it."""


@dataclass(frozen=True)
class Change:
    """An ingredient that differs.

    Attributes:
        name: name of the ingredient, with dots between nested keys.
        before: its value when the result was made, as text.
        now: its value now, as text.
    """

    name: str
    before: str
    now: str

    @property
    def is_of_times_alone(self) -> bool:
        """Whether only times of change differ, so that files of the same names and sizes were probably copied or rewritten."""
        return self.name.endswith(f".{TIMES}")

    def __str__(self) -> str:
        if self.is_of_times_alone:
            return f"{self.name.removesuffix(f'.{TIMES}')}: files of the same names and sizes were written again since"
        return f"{self.name}: {self.before} when it was made, {self.now} now"


def change_of(before: Ingredients, now: Ingredients) -> Change | None:
    """Return the first ingredient that both have with different values; None if there is none."""
    shared = [name for name in before if name in now]
    then, today = ({name: values[name] for name in shared} for values in (before, now))
    difference = first_difference(_without_times(then), _without_times(today)) or first_difference(then, today)
    return None if difference is None else Change(*difference)


def _without_times(value: Any) -> Any:
    """Ingredients without the times of files, so that a difference in time alone is the last one to be found."""
    if not isinstance(value, Mapping):
        return value
    return {name: _without_times(inner) for name, inner in value.items() if name != TIMES}


def command_parts(commands: Sequence[Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """Return commands as program -> option -> its values, so that a message can name the option that differs.

    The folders of programs, and options that do not change the result, are left out. Values before the first
    option are listed under the option "".
    """
    parts: dict[str, dict[str, list[str]]] = {}
    for command in commands:
        name = Path(command[0]).name
        own = parts.setdefault(name if name not in parts else f"{name} ({len(parts)})", {})
        option, skipped = "", 0
        for word in command[1:]:
            if skipped:
                skipped -= 1
            elif word in NEUTRAL_OPTIONS:
                skipped = NEUTRAL_OPTIONS[word]
            elif word.startswith("-"):
                option = word
                own.setdefault(option, [])
            else:
                own.setdefault(option, []).append(word)
    return parts


def digest(value: Any) -> str:
    """Return the first 16 digits of the SHA-256 of a JSON value; the order of keys does not count."""
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str | None:
    """Return the first 16 digits of the SHA-256 of a small file; None if it does not exist."""
    return sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else None


class Listings:
    """Digests of files that are too large to be read: one of names and sizes, one of names and times of change.

    Each folder is read once, until `forget` is called.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Path, tuple[str, ...]], dict[str, str] | None] = {}

    def digest(self, folder: Path, endings: tuple[str, ...] = ("",)) -> dict[str, str] | None:
        """Return the digests of the files in a folder whose names have one of the endings; None if there is no such folder."""
        key = (folder, endings)
        if key not in self._known:
            self._known[key] = _listing_digest(folder, endings)
        return self._known[key]

    def forget(self) -> None:
        """Read every folder again when its digests are next asked for."""
        self._known.clear()


def _listing_digest(folder: Path, endings: tuple[str, ...]) -> dict[str, str] | None:
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(endings) and entry.is_file():
                    status = entry.stat()
                    found.append((entry.name, status.st_size, status.st_mtime_ns))
    except (FileNotFoundError, NotADirectoryError):
        return None
    found.sort()
    return {
        "names and sizes": digest([(name, size) for name, size, _ in found]),
        TIMES: digest([(name, changed) for name, _, changed in found]),
    }


def present(ingredients: Mapping[str, Any]) -> Ingredients:
    """Return the ingredients without those that are None, because they do not exist yet."""
    return {name: value for name, value in ingredients.items() if value is not None}
