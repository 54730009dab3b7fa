"""The base classes of all kinds of jobs."""

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
    """The state of a job's result on disk.

    Attributes:
        state: missing (or outdated and made again without asking), done, refused (outdated, but too costly to be replaced
            without asking), or unrecorded (no record says what it was made from).
        change: the first ingredient that differs; None where none does.
        note: a further reason, for messages.
    """

    state: State
    change: Change | None = None
    note: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the result exists and is what the comparison asks for."""
        return self.state == "done"


MISSING = Outcome("missing")
DONE = Outcome("done")


class Job(ABC):
    """One step of a comparison.

    Attributes:
        kind: kind of the job, as in its name and in tables.
        method_version: version of the method; it is raised when the method gives other results.
        gpu: whether the job uses a GPU if the comparison's device is "cuda".
        name: name of the job and of its folder.
        needs: names of the jobs that must be done before this one.
        dataset: number of the data set.
        layout: the files and folders of the comparison.
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
        """The folder with job.json and the log."""
        return self.layout.job(self.name)

    @property
    def environment(self) -> dict[str, str]:
        """Variables to set for the job's commands."""
        return {}

    @abstractmethod
    def commands(self) -> list[list[str]]:
        """Return the commands that do the job, in their order. Each is one of nnU-Net's or one of this package."""

    @abstractmethod
    def ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return everything that the result of these commands is made from, as far as it exists."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """Return the state of the result on disk."""

    def common_ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return the ingredients that all kinds of jobs have."""
        return {"method version": self.method_version, "command": command_parts(commands)}

    def final_ingredients(self, before: Ingredients, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return the ingredients to record when the job is done, given those from when it started."""
        return before

    def work(self, commands: Sequence[Sequence[str]]) -> AbstractContextManager[bool]:
        """Return the context in which the commands run; its value says whether they still have to run.

        Entering it raises `UserError` if they must not run.
        """
        return nullcontext(True)

    def finish(self) -> None:  # noqa: B027 - only some kinds of jobs have a use for it
        """Called when the job's commands have ended well, before the job counts as done."""

    def check_adoption(self) -> None:  # noqa: B027 - likewise
        """Raise `UsageError` where a result without a record contradicts what is asked for."""

    def adopt(self) -> str:
        """Take a result that `check_adoption` let pass for the one that is asked for; return a line for the log."""
        raise NotImplementedError("only results that may be unrecorded are adopted")

    def note_process(self, process: ProcessRecord) -> None:  # noqa: B027 - only some kinds of jobs have a use for it
        """Record the process of a command of the job that has just been started."""

    def progress(self) -> str:
        """Return how far a running job has got, as a text for tables."""
        return ""

    def discard(self) -> str | None:
        """Discard the job's result, so that it counts as missing; return a line for the log, or None if there was no result."""
        record = self.folder.read()
        if record is None:
            return None
        self.folder.record_file.unlink()
        return f"{self.name}: is made again"


class TableJob(Job):
    """A job whose result is cheap, so that it is made again whenever an ingredient has changed."""

    @property
    @abstractmethod
    def result(self) -> tuple[str, ...]:
        """Paths of the files that exist when the job is done."""

    def outcome(self) -> Outcome:
        """Return "done" if job.json says so, the files exist, and all ingredients are the same; else "missing"."""
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
