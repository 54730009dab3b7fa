"""The base class of metrics: what each declares, and the rule for empty masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from nnunet_glims.evaluation.masks import RegionMasks
from nnunet_glims.evaluation.voxels import VoxelCounts

PENALTY: Literal["penalty"] = "penalty"
"""In place of a value for empty masks: the distance that the protocol gives for them."""


class Metric(ABC):
    """A column of the table of results: one number for one region of one case.

    To add a metric, write a subclass and list an instance of it in `METRICS`.

    Attributes:
        name: the column's name in files.
        title: the name for readers.
        unit: "ml", "mm", or "" for a plain number.
        best: the value of perfect agreement; None if there is no such value.
        worst: the bound on the other side, which may be infinite; None if neither larger nor smaller is worse.
        needs: "voxels" for metrics of voxel counts alone, "surfaces", or "lesions" for metrics that only protocols with
            rules for lesions have.
        both_empty: the value where both masks are empty; None computes it as for any other masks.
        one_empty: the value where exactly one mask is empty: a number, `PENALTY`, or None to compute it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = ""
    best: ClassVar[float | None] = 1.0
    worst: ClassVar[float | None] = 0.0
    needs: ClassVar[Literal["voxels", "surfaces", "lesions"]]
    both_empty: ClassVar[float | None] = None
    one_empty: ClassVar[float | Literal["penalty"] | None] = None

    @property
    def higher_is_better(self) -> bool | None:
        """Whether a larger value is better; None where neither larger nor smaller is better."""
        return None if self.best is None or self.worst is None else self.best > self.worst

    def allows(self, value: float | None) -> bool:
        """Return whether a value lies between `best` and `worst`, up to rounding; None, for undefined, is allowed."""
        if value is None or self.best is None or self.worst is None:
            return True
        return min(self.best, self.worst) - 1e-6 <= value <= max(self.best, self.worst) + 1e-6

    def value(self, masks: RegionMasks) -> float:
        """Return the metric of one region; NaN where it is not defined."""
        empty = self.value_if_empty(masks.voxels, masks.penalty_mm)
        return self.compute(masks) if empty is None else empty

    def value_if_empty(self, voxels: VoxelCounts, penalty_mm: float) -> float | None:
        """Return the declared value if a mask is empty; None if the metric is to be computed."""
        if voxels.truth == voxels.prediction == 0:
            return self.both_empty
        if voxels.truth == 0 or voxels.prediction == 0:
            return penalty_mm if self.one_empty == PENALTY else self.one_empty
        return None

    @abstractmethod
    def compute(self, masks: RegionMasks) -> float:
        """Return the value for masks for which no value is declared."""
