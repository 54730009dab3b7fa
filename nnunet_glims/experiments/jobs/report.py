"""The job that makes the leaderboard of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_glims.experiments.fingerprint import Ingredients, present
from nnunet_glims.experiments.jobs.base import TableJob
from nnunet_glims.experiments.jobs.ensemble import Ensemble
from nnunet_glims.experiments.jobs.evaluate import Evaluate
from nnunet_glims.experiments.layout import Layout

TABLES = ("summary.json", "cases.jsonl", "metrics.csv")


class Report(TableJob):
    """Compares all entries and ensembles of a data set.

    Attributes:
        evaluations: the jobs whose tables are compared.
    """

    kind = "report"

    def __init__(self, layout: Layout, name: str, dataset: int, evaluations: Sequence[Evaluate | Ensemble]):
        super().__init__(layout, name, [job.name for job in evaluations], dataset)
        self.evaluations = evaluations

    @property
    def page(self) -> Path:
        """The leaderboard's HTML page."""
        return self.layout.report(self.dataset) / "leaderboard.html"

    @property
    def result(self) -> tuple[str, ...]:
        """The page, which is written last."""
        return (str(self.page),)

    def commands(self) -> list[list[str]]:
        """Return the command of `nnunet-glims leaderboard` for all evaluations."""
        return self.commands_of(self.evaluations)

    def commands_of(self, evaluations: Sequence[Evaluate | Ensemble], notes: Sequence[str] = ()) -> list[list[str]]:
        """Return the command of `nnunet-glims leaderboard` for some evaluations, on their common cases if not all are given.

        Args:
            evaluations: the jobs whose tables are compared.
            notes: sentences that the page shows below its heading.
        """
        asked = self.layout.comparison
        command = ["nnunet-glims", "leaderboard", *(f"{job.title}={job.evaluation}" for job in evaluations)]
        command += ["-o", str(self.layout.report(self.dataset))]
        command += ["--title", f"{asked.title}: {self.layout.dataset_names[self.dataset]}"]
        for note in notes:
            command += ["--note", note]
        if asked.published:
            command += ["--published", ",".join(asked.published)]
        return [command if len(evaluations) == len(self.evaluations) else [*command, "--intersection"]]

    def ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return the digests of the tables."""
        tables = {
            f"tables of {job.name}": self.layout.listings.digest(job.evaluation, TABLES) for job in self.evaluations
        }
        return present({**self.common_ingredients(commands), **tables})
