"""Metrics lesion by lesion. What empty masks give follows from the lesions, so no value is fixed for them."""

from __future__ import annotations

from math import inf

from nnunet_glims.evaluation.masks import RegionMasks
from nnunet_glims.evaluation.metrics.metric import Metric


class LesionDice(Metric):
    """The sum of the lesions' Dice, divided by lesions plus false positives; 1 where there is neither."""

    name, title = "lesion_dice", "Lesion-wise Dice"
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """A missed lesion and a false positive count 0."""
        lesions = masks.lesions
        return sum(lesions.dice) / lesions.counted if lesions.counted else 1.0


class LesionHD95(Metric):
    """The sum of the lesions' HD95, divided by lesions plus false positives; 0 where there is neither."""

    name, title, unit = "lesion_hd95", "Lesion-wise HD95", "mm"
    best, worst = 0.0, inf
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """A missed lesion and a false positive count the protocol's penalty."""
        lesions = masks.lesions
        if not lesions.counted:
            return 0.0
        distances = [masks.penalty_mm if distance is None else distance for distance in lesions.hd95]
        return (sum(distances) + lesions.false * masks.penalty_mm) / lesions.counted


class LesionsFound(Metric):
    """True lesions that a predicted component touches."""

    name, title = "lesions_found", "Lesions found"
    best = worst = None
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """The number of these lesions."""
        return float(masks.lesions.found)


class LesionsMissed(Metric):
    """True lesions that no predicted component touches."""

    name, title = "lesions_missed", "Lesions missed"
    best, worst = 0.0, inf
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """The number of these lesions."""
        return float(masks.lesions.missed)


class FalseLesions(Metric):
    """Predicted components that belong to no true lesion."""

    name, title = "lesions_false", "False lesions"
    best, worst = 0.0, inf
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """The number of these components."""
        return float(masks.lesions.false)
