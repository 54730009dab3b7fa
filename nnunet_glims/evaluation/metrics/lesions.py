"""Lesion-wise metrics. Their values for empty masks follow from the number of lesions, so none is declared."""

from __future__ import annotations

from math import inf

from nnunet_glims.evaluation.masks import RegionMasks
from nnunet_glims.evaluation.metrics.metric import Metric


class LesionDice(Metric):
    """The sum of the lesions' Dice, divided by the number of lesions plus false positives; 1 where there is neither."""

    name, title = "lesion_dice", "Lesion-wise Dice"
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """Return the value, for which a missed lesion and a false positive count 0."""
        lesions = masks.lesions
        return sum(lesions.dice) / lesions.counted if lesions.counted else 1.0


class LesionHD95(Metric):
    """The sum of the lesions' HD95 in mm, divided by the number of lesions plus false positives; 0 where there is neither."""

    name, title, unit = "lesion_hd95", "Lesion-wise HD95", "mm"
    best, worst = 0.0, inf
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """Return the value in mm, for which a missed lesion and a false positive count the protocol's penalty."""
        lesions = masks.lesions
        if not lesions.counted:
            return 0.0
        distances = [masks.penalty_mm if distance is None else distance for distance in lesions.hd95]
        return (sum(distances) + lesions.false * masks.penalty_mm) / lesions.counted


class LesionsFound(Metric):
    """Number of true lesions that a predicted component touches."""

    name, title = "lesions_found", "Lesions found"
    best = worst = None
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """Return the number of these lesions."""
        return float(masks.lesions.found)


class LesionsMissed(Metric):
    """Number of true lesions that no predicted component touches."""

    name, title = "lesions_missed", "Lesions missed"
    best, worst = 0.0, inf
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """Return the number of these lesions."""
        return float(masks.lesions.missed)


class FalseLesions(Metric):
    """Number of predicted components that belong to no true lesion."""

    name, title = "lesions_false", "False lesions"
    best, worst = 0.0, inf
    needs = "lesions"

    def compute(self, masks: RegionMasks) -> float:
        """Return the number of these components."""
        return float(masks.lesions.false)
