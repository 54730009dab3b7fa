"""Metrics of the overlap of two masks."""

from __future__ import annotations

from abc import abstractmethod
from math import nan
from typing import ClassVar

from nnunet_glims.evaluation.masks import RegionMasks
from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.voxels import VoxelCounts


class OverlapMetric(Metric):
    """A metric of voxel counts with values from 0 to 1: 1 where both masks are empty, 0 where exactly one is."""

    needs = "voxels"
    both_empty = 1.0
    one_empty: ClassVar[float | None] = 0.0

    def compute(self, masks: RegionMasks) -> float:
        """Return the value for masks for which no value is declared."""
        return self.quotient(masks.voxels)

    def of_voxels(self, voxels: VoxelCounts) -> float:
        """Return the value from voxel counts alone."""
        empty = self.value_if_empty(voxels, nan)
        return self.quotient(voxels) if empty is None else empty

    @abstractmethod
    def quotient(self, voxels: VoxelCounts) -> float:
        """Return the value for voxel counts for which no value is declared."""


class Dice(OverlapMetric):
    """Dice's coefficient: twice the voxels of both masks, divided by the sum of the masks' voxels."""

    name, title = "dice", "Dice"

    def quotient(self, voxels: VoxelCounts) -> float:
        """Return 2 TP / (2 TP + FP + FN)."""
        return 2 * voxels.tp / (voxels.truth + voxels.prediction)


class IoU(OverlapMetric):
    """Intersection over union, also called Jaccard's index."""

    name, title = "iou", "IoU"

    def quotient(self, voxels: VoxelCounts) -> float:
        """Return TP / (TP + FP + FN)."""
        return voxels.tp / (voxels.tp + voxels.fp + voxels.fn)


class Precision(OverlapMetric):
    """The part of the predicted voxels that is true."""

    name, title = "precision", "Precision"

    def quotient(self, voxels: VoxelCounts) -> float:
        """Return TP / (TP + FP)."""
        return voxels.tp / voxels.prediction


class Sensitivity(OverlapMetric):
    """The part of the true voxels that was predicted, also called recall."""

    name, title = "sensitivity", "Sensitivity"

    def quotient(self, voxels: VoxelCounts) -> float:
        """Return TP / (TP + FN)."""
        return voxels.tp / voxels.truth


class Specificity(OverlapMetric):
    """The part of the voxels outside the true region that was not predicted; 1 where nothing is outside."""

    name, title = "specificity", "Specificity"
    one_empty = None

    def quotient(self, voxels: VoxelCounts) -> float:
        """Return TN / (TN + FP)."""
        outside = voxels.tn + voxels.fp
        return voxels.tn / outside if outside else 1.0


DICE = Dice()
"""The metric that post-processing rules are chosen by."""
