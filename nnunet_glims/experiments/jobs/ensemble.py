"""The job that makes nnU-Net's ensemble of the validation predictions of several entries, and evaluates it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_glims.experiments.entry_plans import EntryPlans
from nnunet_glims.experiments.fingerprint import Ingredients, present
from nnunet_glims.experiments.jobs.base import TableJob
from nnunet_glims.experiments.jobs.evaluate import evaluation_ingredients
from nnunet_glims.experiments.layout import Layout

PROBABILITIES = (".npz", ".pkl")


class Ensemble(TableJob):
    """Averages the probabilities of several entries, and evaluates the result.

    Attributes:
        members: the plans of the entries.
    """

    kind = "ensemble"

    def __init__(self, layout: Layout, name: str, needs: Sequence[str], dataset: int, members: Sequence[EntryPlans]):
        super().__init__(layout, name, needs, dataset)
        self.members = members

    @property
    def title(self) -> str:
        """Name on the leaderboard. Evaluations of one name are the seeds of one ensemble."""
        return "+".join(member.entry.name for member in self.members)

    @property
    def predictions(self) -> Path:
        """The folder of the predictions."""
        return self.layout.ensemble(
            self.dataset, tuple(member.entry.name for member in self.members), self.members[0].seed
        )

    @property
    def evaluation(self) -> Path:
        """The folder of the tables."""
        return self.predictions / "evaluation"

    @property
    def result(self) -> tuple[str, ...]:
        """The summary, which is written last."""
        return (str(self.evaluation / "summary.json"),)

    @property
    def _models(self) -> list[Path]:
        return [self.layout.model(self.dataset, member.entry, member.seed) for member in self.members]

    def commands(self) -> list[list[str]]:
        """Return the command of `experiments.ensemble_predictions`, then that of `nnunet-glims evaluate`."""
        asked = self.layout.comparison
        module = "nnunet_glims.experiments.ensemble_predictions"
        models, folds = map(str, self._models), map(str, asked.folds)
        return [
            [sys.executable, "-m", module, str(self.predictions), *models, "--folds", *folds],
            ["nnunet-glims", "evaluate", str(self.layout.truths(self.dataset)), str(self.predictions),
             "--preset", asked.evaluation, "--only-predicted", "--workers", str(asked.resources.cpus)],
        ]  # fmt: skip

    def ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return the members' probabilities, the true label maps, and the settings of the evaluation."""
        digest_of = self.layout.listings.digest
        asked = self.layout.comparison
        probabilities = {
            f"{model.name} fold {fold}": digest_of(model / f"fold_{fold}/validation", PROBABILITIES)
            for model in self._models
            for fold in asked.folds
        }
        return present(
            {
                **self.common_ingredients(commands),
                **evaluation_ingredients(asked.evaluation),
                **probabilities,
                "true label maps": digest_of(self.layout.truths(self.dataset)),
            }
        )
