"""The interface of executors: submit jobs, report their states, cancel them, and find their output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.jobs.base import Job

Tell = Callable[[str], None]
LOST = "LOST"
"""State of a job that was submitted and left the executor's queue without having started."""


class Executor(ABC):
    """Runs jobs of a comparison.

    Attributes:
        name: the value of --executor that selects this executor.
        waits: whether `submit` returns only when the jobs have ended.
        experiment: the comparison.
    """

    name: ClassVar[str]
    waits: ClassVar[bool] = True

    def __init__(self, experiment: Experiment):
        self.experiment = experiment

    @abstractmethod
    def submit(self, jobs: Sequence[Job], tell: Tell) -> list[str]:
        """Run or enqueue jobs, each after the jobs that it needs.

        Args:
            jobs: the jobs, each listed after those that it needs.
            tell: called with a line of text for each event.

        Returns:
            The names of the jobs that failed; empty for an executor that does not wait for them.

        Raises:
            UsageError: the executor is not available on this machine, or refuses the jobs.
        """

    @abstractmethod
    def states(self) -> dict[str, str]:
        """Return the state of each job that the executor has: RUNNING, LOST, or another text for a job that waits."""

    @abstractmethod
    def cancel(self, jobs: Sequence[Job], tell: Tell) -> None:
        """Stop jobs, which are then not continued until they are submitted again. Trainings save a checkpoint first."""

    def output(self, job: Job) -> Path | None:
        """Return the file with what a job printed; None where it was never started."""
        log = job.folder.log
        return log if log.exists() else None
