"""Counts of voxels and what follows from them: Dice, IoU, precision, sensitivity, specificity, volumes.

Where a quotient has nothing to divide by, both masks empty is agreement and has the best value, anything else the worst.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import nan

import numpy as np


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, labels: int) -> np.ndarray:
    """(labels, labels) voxels with each true label (row) and predicted label (column). Labels are 0 to `labels` - 1."""
    pairs = truth.ravel().astype(np.intp)
    pairs *= labels
    pairs += prediction.ravel()
    return np.bincount(pairs, minlength=labels * labels).reshape(labels, labels)


@dataclass(frozen=True)
class Overlap:
    """Voxels of one region: true positives, false positives, false negatives, true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of_region(cls, confusion: np.ndarray, region: Collection[int]) -> Overlap:
        """Of the region that these labels are together."""
        inside = np.isin(np.arange(len(confusion)), list(region))
        tp = int(confusion[np.ix_(inside, inside)].sum())
        fp = int(confusion[np.ix_(~inside, inside)].sum())
        fn = int(confusion[np.ix_(inside, ~inside)].sum())
        return cls(tp, fp, fn, int(confusion.sum()) - tp - fp - fn)

    @property
    def truth(self) -> int:
        """Voxels of the true region."""
        return self.tp + self.fn

    @property
    def prediction(self) -> int:
        """Voxels of the predicted region."""
        return self.tp + self.fp

    def measures(self, voxel_ml: float) -> dict[str, float]:
        """Name -> value; `voxel_ml` is the volume of a voxel in ml."""
        agree = self.truth == self.prediction == 0
        return {
            "dice": _quotient(2 * self.tp, self.truth + self.prediction, agree),
            "iou": _quotient(self.tp, self.tp + self.fp + self.fn, agree),
            "precision": _quotient(self.tp, self.prediction, agree),
            "sensitivity": _quotient(self.tp, self.truth, agree),
            "specificity": _quotient(self.tn, self.tn + self.fp, True),
            "truth_ml": self.truth * voxel_ml,
            "volume_ml": self.prediction * voxel_ml,
            "volume_error": (self.prediction - self.truth) / self.truth if self.truth else (0.0 if agree else nan),
        }


def _quotient(part: int, whole: int, agree: bool) -> float:
    return part / whole if whole else float(agree)
