"""Counts of voxels: confusion matrices, and the counts of one region."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, labels: int) -> np.ndarray:
    """Count the voxels with each pair of labels.

    Args:
        truth, prediction: label maps of one shape, with labels from 0 to `labels` - 1.
        labels: number of labels, with the background.

    Returns:
        (labels, labels) voxels by true label (row) and predicted label (column).
    """
    pairs = truth.ravel().astype(np.intp)
    pairs *= labels
    pairs += prediction.ravel()
    return np.bincount(pairs, minlength=labels * labels).reshape(labels, labels)


@dataclass(frozen=True)
class VoxelCounts:
    """Voxel counts of one region: true positives, false positives, false negatives, true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of_region(cls, confusion: np.ndarray, region: Collection[int]) -> VoxelCounts:
        """Return the counts of a region, given by its labels, from a confusion matrix of all labels."""
        inside = np.isin(np.arange(len(confusion)), list(region))
        tp = int(confusion[np.ix_(inside, inside)].sum())
        fp = int(confusion[np.ix_(~inside, inside)].sum())
        fn = int(confusion[np.ix_(inside, ~inside)].sum())
        return cls(tp, fp, fn, int(confusion.sum()) - tp - fp - fn)

    @property
    def truth(self) -> int:
        """Number of voxels of the true region."""
        return self.tp + self.fn

    @property
    def prediction(self) -> int:
        """Number of voxels of the predicted region."""
        return self.tp + self.fp
