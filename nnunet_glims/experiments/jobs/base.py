"""What all kinds of jobs have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from nnunet_glims.experiments.fingerprint import Change, Ingredients, change_of, command_parts
from nnunet_glims.experiments.layout import Layout
from nnunet_glims.experiments.state import JobFolder, ProcessRecord

State = Literal["missing", "done", "refused", "unrecorded"]


@dataclass(frozen=True)
class Outcome:
    """What is on disk of a job's result.

    Attributes:
        state: missing (also: to be made again), done, refused (it was made from something else, and is too costly to be
            replaced unasked), unrecorded (nothing says what it was made from).
        change: the first ingredient that differs.
        note: another reason, for messages.
    """

    state: State
    change: Change | None = None
    note: str = ""

    @property
    def is_done(self) -> bool:
        """Whether what was asked for is there."""
        return self.state == "done"


MISSING = Outcome("missing")
DONE = Outcome("done")


class Job(ABC):
    """One step of a comparison.

    Attributes:
        kind: of the job, in its name and in tables.
        method_version: a new number for a method that gives other results.
        gpu: whether the job uses a GPU where the comparison's device is one.
        name: of the job and of its folder.
        needs: names of the jobs that must be done before.
        dataset: number of the data set.
        layout: where the comparison's files lie.
    """

    kind: ClassVar[str]
    method_version: ClassVar[int] = 1
    gpu: ClassVar[bool] = False

    def __init__(self, layout: Layout, name: str, needs: Sequence[str], dataset: int):
        self.layout = layout
        self.name = name
        self.needs = tuple(needs)
        self.dataset = dataset

    @property
    def folder(self) -> JobFolder:
        """With job.json and the log."""
        return self.layout.job(self.name)

    @property
    def environment(self) -> dict[str, str]:
        """Variables to set for the job's commands."""
        return {}

    @abstractmethod
    def commands(self) -> list[list[str]]:
        """What does the job, one command after the other. Each is nnU-Net's or one of this package."""

    @abstractmethod
    def ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """All that the result of these commands is made from, as far as it is there."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """What is on disk of the result."""

    def common_ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """What every kind of job has among its ingredients."""
        return {"method version": self.method_version, "command": command_parts(commands)}

    def final_ingredients(self, before: Ingredients, commands: Sequence[Sequence[str]]) -> Ingredients:
        """What is remembered when the job is done, by what its result was made from when it started."""
        return before

    def work(self, commands: Sequence[Sequence[str]]) -> AbstractContextManager[bool]:
        """Entered while the commands run; gives whether they still have to. Raises `UserError` where they must not."""
        return nullcontext(True)

    def finish(self) -> None:  # noqa: B027 - only some kinds of jobs have a use for it
        """Called when the job's commands have ended well, before the job counts as done."""

    def check_adoption(self) -> None:  # noqa: B027 - likewise
        """Raise `UsageError` where a result without a record contradicts what is asked for."""

    def adopt(self) -> str:
        """Take a result that `check_adoption` let pass for the one that is asked for; return a line for the log."""
        raise NotImplementedError("only results that may be unrecorded are adopted")

    def note_process(self, process: ProcessRecord) -> None:  # noqa: B027 - only some kinds of jobs have a use for it
        """Called when a command of the job was started, with its process."""

    def progress(self) -> str:
        """How far a running job is, for tables."""
        return ""

    def discard(self) -> str | None:
        """Make the job's result one that is missing, since the user asked for it; returns what was done, for the log."""
        record = self.folder.read()
        if record is None:
            return None
        self.folder.record_file.unlink()
        return f"{self.name}: is made again"


class TableJob(Job):
    """A job whose result is cheap: it is made again whenever an ingredient has changed."""

    @property
    @abstractmethod
    def result(self) -> tuple[str, ...]:
        """Paths of files that are there when the job is done."""

    def outcome(self) -> Outcome:
        """Done where job.json says so, the files are there, and all ingredients are the same."""
        if not all(Path(path).exists() for path in self.result):
            return MISSING
        record = self.folder.read()
        if record is None or record.ending != "done":
            return MISSING
        now = self.ingredients(self.commands())
        if record.ingredients.keys() != now.keys():
            return MISSING
        change = change_of(record.ingredients, now)
        return DONE if change is None else Outcome("missing", change)
