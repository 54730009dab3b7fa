"""Metrics of the distances between the surfaces of two masks."""

from __future__ import annotations

from math import inf

from nnunet_glims.evaluation.masks import RegionMasks
from nnunet_glims.evaluation.metrics.metric import PENALTY, Metric


class DistanceMetric(Metric):
    """A distance in mm: 0 where both masks are empty, the protocol's penalty where exactly one is."""

    unit = "mm"
    best, worst = 0.0, inf
    needs = "surfaces"
    both_empty = 0.0
    one_empty = PENALTY


class HD95(DistanceMetric):
    """The Hausdorff distance at the 95th percentile."""

    name, title = "hd95", "HD95"

    def compute(self, masks: RegionMasks) -> float:
        """Return the 95th percentile in mm, taken as the protocol's definition of surfaces says."""
        return masks.distances.hausdorff(95)


class HD100(DistanceMetric):
    """The Hausdorff distance: the largest distance from one surface to the other."""

    name, title = "hd100", "HD"

    def compute(self, masks: RegionMasks) -> float:
        """Return the largest distance in mm in either direction."""
        return masks.distances.hausdorff(100)


class ASSD(DistanceMetric):
    """The average symmetric surface distance."""

    name, title = "assd", "ASSD"

    def compute(self, masks: RegionMasks) -> float:
        """Return the mean distance in mm over both surfaces together, weighted by area."""
        return masks.distances.average()


class NSD(Metric):
    """The normalised surface Dice: the part of both surfaces that is within a tolerance (arXiv 1809.04430)."""

    name, title = "nsd", "NSD"
    needs = "surfaces"
    both_empty = 1.0
    one_empty = 0.0

    def compute(self, masks: RegionMasks) -> float:
        """Return the part of both surfaces that is within the region's tolerance of the other surface."""
        return masks.distances.within(masks.tolerance_mm)
