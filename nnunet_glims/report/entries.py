"""What a leaderboard compares: evaluated folders, each with a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.results import Results, is_evaluation, read_results
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.validation import validate


class EntryFile(BaseModel):
    """One entry of a YAML file.

    Attributes:
        path: an evaluated model folder or prediction folder, or the folder that `nnunet-glims evaluate -o` wrote.
        model: model folder, for parameters, time and learning curves; the path itself where that is one.
        seconds_a_case: of inference, where it was measured; else the training log's, of the validation cases.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    path: Path
    model: Path | None = None
    seconds_a_case: float | None = Field(default=None, gt=0)


class BoardFile(BaseModel):
    """The content of a leaderboard's YAML file."""

    model_config = ConfigDict(extra="forbid")

    title: str = "Leaderboard"
    entries: list[EntryFile] = Field(min_length=1)


@dataclass(frozen=True)
class Entry:
    """One entry with its results."""

    name: str
    results: Results
    model: ModelFolder | None
    seconds_a_case: float | None = None


def read_entries(arguments: Sequence[str]) -> tuple[str, list[Entry]]:
    """Title and entries, from `NAME=PATH` arguments or from one YAML file, whose paths are relative to it.

    Raises:
        UsageError: the YAML is wrong, a folder is not there or not evaluated, or two entries have one name.
    """
    if len(arguments) == 1 and Path(arguments[0]).suffix in (".yaml", ".yml"):
        board = _from_yaml(Path(arguments[0]))
    else:
        entries = []
        for text in arguments:
            name, equals, path = text.partition("=")
            if not equals or not name or not path:
                raise UsageError(f"{text!r} is no entry: give NAME=PATH, or one YAML file")
            entries.append(EntryFile(name=name, path=Path(path)))
        if not entries:
            raise UsageError("give at least one entry, NAME=PATH")
        board = BoardFile(entries=entries)
    names = [entry.name for entry in board.entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"there are several entries named {twice!r}: give each its own name")
    return board.title, [_entry(given) for given in board.entries]


def _from_yaml(path: Path) -> BoardFile:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: this is not YAML: {error}") from None
    board = validate(BoardFile, content, str(path))
    for entry in board.entries:
        entry.path = path.parent / entry.path
        entry.model = None if entry.model is None else path.parent / entry.model
    return board


def _entry(given: EntryFile) -> Entry:
    if not given.path.is_dir():
        raise UsageError(f"{given.name}: {given.path}: there is no such folder")
    inside = given.path / "evaluation"
    folder = inside if is_evaluation(inside) else given.path
    if not is_evaluation(folder):
        how = f"--model {given.path}" if any(given.path.glob("fold_*")) else f"TRUTH {given.path}"
        raise UsageError(f"{given.name}: {given.path} is not evaluated to its end: run nnunet-glims evaluate {how}")
    results = read_results(folder)
    model = given.model or _existing(results.summary.get("model"))
    return Entry(given.name, results, None if model is None else ModelFolder(model), given.seconds_a_case)


def _existing(path: str | None) -> Path | None:
    return Path(path) if path is not None and Path(path).is_dir() else None
