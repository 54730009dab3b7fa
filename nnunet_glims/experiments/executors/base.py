"""What an executor is: it takes jobs, says how they are, stops them, and knows what they printed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.jobs.base import Job

Tell = Callable[[str], None]
LOST = "LOST"
"""State of a job that the executor was given, that it does not have any more, and that never began."""


class Executor(ABC):
    """Runs jobs of a comparison.

    Attributes:
        name: that users give to --executor.
        waits: whether `submit` returns only when the jobs have ended.
        experiment: the comparison.
    """

    name: ClassVar[str]
    waits: ClassVar[bool] = True

    def __init__(self, experiment: Experiment):
        self.experiment = experiment

    @abstractmethod
    def submit(self, jobs: Sequence[Job], tell: Tell) -> list[str]:
        """Take jobs that are to be done, each after those that it needs.

        Args:
            jobs: in an order in which they can be done.
            tell: gets a line whenever something happens.

        Returns:
            The names of those that failed, where it waits for them.

        Raises:
            UsageError: the executor cannot be used here, or refuses the jobs.
        """

    @abstractmethod
    def states(self) -> dict[str, str]:
        """Job -> its state, RUNNING, LOST or another that means that it waits, of the jobs that the executor has."""

    @abstractmethod
    def cancel(self, jobs: Sequence[Job], tell: Tell) -> None:
        """Stop jobs for good; trainings save what they have."""

    def output(self, job: Job) -> Path | None:
        """The file with what a job printed; None where it was never started."""
        log = job.folder.log
        return log if log.exists() else None
