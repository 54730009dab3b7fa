"""The entries of a leaderboard: each has a name and one evaluated folder for each of its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from nnunet_glims.errors import UsageError, UserError
from nnunet_glims.evaluation.records import Name, Results, is_evaluation, read_results, status_of
from nnunet_glims.evaluation.regions import printable
from nnunet_glims.nnunet.evaluation import RESULTS_FOLDER, change_since
from nnunet_glims.nnunet.folders import RAW
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.validation import read_model, validate


class EntryFile(BaseModel):
    """One entry of a leaderboard's YAML file.

    Attributes:
        name: name of the entry.
        path: an evaluated model folder or prediction folder, or the folder that `nnunet-glims evaluate -o` wrote.
        paths: in place of `path`, a list of such folders, one for each seed of the entry.
        model: model folder for parameters, time and learning curves; None takes the one that was evaluated. With several
            seeds it is the model of the first seed.
        seconds_a_case: measured seconds of prediction for a case; None takes those of the validation cases from the
            training log.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    path: Path | None = None
    paths: list[Path] = Field(default_factory=list)
    model: Path | None = None
    seconds_a_case: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_paths(self) -> EntryFile:
        if (self.path is None) == (not self.paths):
            raise ValueError(f"{self.name}: give either path, or paths with a folder for each seed")
        return self

    @property
    def folders(self) -> list[Path]:
        """The folder of each seed."""
        return list(self.paths) if self.path is None else [self.path]


class BoardFile(BaseModel):
    """The content of a leaderboard's YAML file.

    Attributes:
        title: heading of the page.
        entries: the entries, in the order of the table.
    """

    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, AfterValidator(printable)] = "Leaderboard"
    entries: list[EntryFile] = Field(min_length=1)


@dataclass(frozen=True)
class Run:
    """An evaluated folder: the results of one seed of an entry.

    Attributes:
        folder: the folder that was given.
        results: its evaluation.
        model: the model that predicted; None where it is not known.
        unknown: why the model is not known; empty if no model was evaluated.
    """

    folder: Path
    results: Results
    model: ModelFolder | None
    unknown: str | None = None


@dataclass(frozen=True)
class LeaderboardEntry:
    """A row of the leaderboard.

    Attributes:
        name: name of the entry.
        runs: the results of each seed; one for an entry that was trained once.
        seconds_a_case: seconds of prediction for a case, if the user measured them.
    """

    name: str
    runs: Sequence[Run]
    seconds_a_case: float | None = None

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        """The lines of the files cases.jsonl of all seeds."""
        return [line for run in self.runs for line in run.results.cases]

    @property
    def dataset_folders(self) -> list[Path]:
        """Folders that may hold the raw data set: that of the model in nnUNet_raw, and those around the true label maps."""
        found = []
        for run in self.runs[:1]:
            names = [] if run.model is None else [run.model.dataset]
            for line in run.results.cases[:1]:
                around = Path(line["truth"]).parent.parent
                found.append(around)
                names.append(around.name)
            found = [folder for name in names if (folder := RAW.find(name)) is not None] + found
        return found


Entries = Mapping[str, str | Path | Sequence[str | Path]]
"""Name -> an evaluated folder, or the folders of several seeds."""


def board_file(entries: Entries | str | Path) -> BoardFile:
    """Return the entries of a leaderboard from a mapping, or from a YAML file, whose paths are relative to that file.

    Raises:
        UsageError: the YAML file is wrong, two entries have the same name, or there is no entry.
    """
    if isinstance(entries, str | Path):
        board = _from_yaml(Path(entries))
    else:
        if not entries:
            raise UsageError("give at least one entry, NAME=FOLDER")
        folders = {name: [given] if isinstance(given, str | Path) else given for name, given in entries.items()}
        content = {"entries": [{"name": name, "paths": list(map(str, paths))} for name, paths in folders.items()]}
        board = validate(BoardFile, content, "entries")
    names = [entry.name for entry in board.entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"there are several entries named {twice!r}: give each its own name, or one entry the paths of its seeds"
        )
    return board


def board_file_of_arguments(arguments: Sequence[str]) -> BoardFile:
    """Return the entries of a leaderboard from `NAME=FOLDER` arguments, or from the path of a YAML file.

    Folders of the same name are the seeds of one entry.

    Raises:
        UsageError: an argument is neither of these, or the errors of `board_file`.
    """
    if len(arguments) == 1 and Path(arguments[0]).suffix in (".yaml", ".yml"):
        return board_file(arguments[0])
    entries: dict[str, list[str | Path]] = {}
    for text in arguments:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"{text!r} is no entry: give NAME=FOLDER, or one YAML file")
        entries.setdefault(name, []).append(path)
    return board_file(entries)


def read_entries(board: BoardFile, trust: bool = False) -> list[LeaderboardEntry]:
    """Read the results of all entries.

    Args:
        board: the entries.
        trust: whether the plans of their models may have any network imported and called, see `nnunet.trust`.

    Raises:
        UsageError: a folder does not exist or is not evaluated, two seeds of an entry are the same folder, or the errors of
            `check_results`.
    """
    return [_entry(given, trust) for given in board.entries]


def check_results(name: str, results: Results) -> None:
    """Raise `UsageError` if a case could not be evaluated, or label maps have changed since the evaluation."""
    failed = results.summary["failed"]
    if failed:
        raise UsageError(
            f"{name}: {len(failed)} cases could not be evaluated, such as {next(iter(failed.items()))}: correct them and "
            "run nnunet-glims evaluate again"
        )
    changed = change_since(results)
    if changed is not None:
        raise UsageError(f"{name}: {changed}: run nnunet-glims evaluate again")


def _from_yaml(path: Path) -> BoardFile:
    board = read_model(BoardFile, path, is_yaml=True)
    for entry in board.entries:
        entry.path = None if entry.path is None else path.parent / entry.path
        entry.paths = [path.parent / given for given in entry.paths]
        entry.model = None if entry.model is None else path.parent / entry.model
    return board


def _entry(given: EntryFile, trust: bool) -> LeaderboardEntry:
    resolved = [folder.resolve() for folder in given.folders]
    twice = next((folder for folder in resolved if resolved.count(folder) > 1), None)
    if twice is not None:
        raise UsageError(f"{given.name}: {twice} is given twice: each seed has a folder of its own")
    models = [given.model, *[None] * (len(resolved) - 1)]
    runs = [_run(given.name, folder, model, trust) for folder, model in zip(given.folders, models, strict=True)]
    return LeaderboardEntry(given.name, runs, given.seconds_a_case)


def _run(name: str, folder: Path, model: Path | None, trust: bool) -> Run:
    if not folder.is_dir():
        raise UsageError(f"{name}: {folder}: there is no such folder")
    inside = folder / RESULTS_FOLDER
    evaluated = inside if is_evaluation(inside) else folder
    if not is_evaluation(evaluated):
        how = f"--model {folder}" if any(folder.glob("fold_*")) else f"TRUTH {folder}"
        raise UsageError(f"{name}: {folder} has no completed evaluation: run nnunet-glims evaluate {how}")
    results = read_results(evaluated)
    check_results(name, results)
    if model is not None:
        return Run(folder, results, ModelFolder(model, trust))
    remembered = results.summary.get("model")
    if remembered is None or status_of(remembered) is None:
        return Run(folder, results, None)
    try:
        found = ModelFolder(Path(remembered), trust)
        _ = found.dataset, found.dataset_json  # later steps need both
    except UserError as error:
        return Run(folder, results, None, str(error))
    return Run(folder, results, found)
