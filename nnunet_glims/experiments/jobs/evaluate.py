"""The job that evaluates the validation cases of one entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nnunet_glims.evaluation.protocol import preset_named
from nnunet_glims.experiments.entry_plans import EntryPlans
from nnunet_glims.experiments.fingerprint import Ingredients, digest, file_digest, present
from nnunet_glims.experiments.jobs.base import TableJob
from nnunet_glims.experiments.layout import Layout


def evaluation_ingredients(preset: str) -> Ingredients:
    """Return the ingredients of every evaluation: the preset, its settings, and the version of the metrics."""
    from nnunet_glims.evaluation import results

    protocol = asdict(preset_named(preset))
    return {"preset": preset, "protocol": digest(protocol), "metrics version": results.METHOD_VERSION}


class Evaluate(TableJob):
    """Evaluates the validation cases of an entry.

    Attributes:
        plans: the plans of the entry.
    """

    kind = "evaluate"

    def __init__(self, layout: Layout, name: str, needs: Sequence[str], dataset: int, plans: EntryPlans):
        super().__init__(layout, name, needs, dataset)
        self.plans = plans

    @property
    def title(self) -> str:
        """Name on the leaderboard. Evaluations of one name are the seeds of one entry."""
        return self.plans.entry.name

    @property
    def evaluation(self) -> Path:
        """The folder of the tables."""
        return self.layout.evaluation(self.dataset, self.plans.entry, self.plans.seed)

    @property
    def result(self) -> tuple[str, ...]:
        """The summary, which is written last."""
        return (str(self.evaluation / "summary.json"),)

    @property
    def _model(self) -> Path:
        return self.layout.model(self.dataset, self.plans.entry, self.plans.seed)

    def commands(self) -> list[list[str]]:
        """Return the command of `nnunet-glims evaluate`."""
        asked = self.layout.comparison
        return [
            [
                "nnunet-glims", "evaluate", "--model", str(self._model), "--folds", ",".join(map(str, asked.folds)),
                "--preset", asked.evaluation, "--workers", str(asked.resources.cpus), "-o", str(self.evaluation),
            ]
        ]  # fmt: skip

    def ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return the predicted and the true label maps, and the settings of the evaluation."""
        digest_of = self.layout.listings.digest
        asked = self.layout.comparison
        validations = {f"fold {fold}": digest_of(self._model / f"fold_{fold}/validation") for fold in asked.folds}
        return present(
            {
                **self.common_ingredients(commands),
                **evaluation_ingredients(asked.evaluation),
                **validations,
                "dataset.json": file_digest(self._model / "dataset.json"),
                "true label maps": digest_of(self.layout.truths(self.dataset)),
            }
        )
