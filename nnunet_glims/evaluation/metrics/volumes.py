"""Metrics of the volumes of the two masks."""

from __future__ import annotations

from math import nan

from nnunet_glims.evaluation.masks import RegionMasks
from nnunet_glims.evaluation.metrics.metric import Metric


class TrueVolume(Metric):
    """The volume of the true region in ml."""

    name, title, unit = "truth_ml", "True volume", "ml"
    best = worst = None
    needs = "voxels"

    def compute(self, masks: RegionMasks) -> float:
        """Return the number of voxels of the true region times the volume of a voxel in ml."""
        return masks.voxels.truth * masks.voxel_ml


class PredictedVolume(Metric):
    """The volume of the predicted region in ml."""

    name, title, unit = "volume_ml", "Volume", "ml"
    best = worst = None
    needs = "voxels"

    def compute(self, masks: RegionMasks) -> float:
        """Return the number of voxels of the predicted region times the volume of a voxel in ml."""
        return masks.voxels.prediction * masks.voxel_ml


class RelativeVolumeError(Metric):
    """The predicted volume minus the true one, divided by the true one; not defined where only the truth is empty."""

    name, title = "volume_error", "Relative volume error"
    best, worst = 0.0, None
    needs = "voxels"
    both_empty = 0.0

    def compute(self, masks: RegionMasks) -> float:
        """Return (predicted - true) / true."""
        voxels = masks.voxels
        return (voxels.prediction - voxels.truth) / voxels.truth if voxels.truth else nan
