"""The input of metrics: the two masks of one region of one case, and their distances and lesions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnunet_glims.evaluation.lesions import LesionMatches, LesionRules, match_lesions
from nnunet_glims.evaluation.surfaces import Definition, Surface, SurfaceDistances, surface_of
from nnunet_glims.evaluation.voxels import VoxelCounts


@dataclass(frozen=True)
class RegionMasks:
    """The true and the predicted mask of one region. Distances and lesions are computed when they are first used.

    Attributes:
        truth, prediction: (X, Y, Z) boolean masks.
        voxels: voxel counts of the whole image. The masks may be cropped to a box around both regions.
        spacing: mm along each axis.
        definition: definition of surfaces, see `evaluation.surfaces`.
        tolerance_mm: tolerance of the normalised surface Dice in mm.
        penalty_mm: distance in mm that counts where one mask is empty, and for missed and false lesions.
        lesion_rules: settings of the lesion-wise metrics; None where the protocol has none.
    """

    truth: np.ndarray
    prediction: np.ndarray
    voxels: VoxelCounts
    spacing: tuple[float, ...]
    definition: Definition
    tolerance_mm: float
    penalty_mm: float
    lesion_rules: LesionRules | None

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in ml."""
        return float(np.prod(self.spacing)) / 1000

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between the surfaces of the two masks, neither of which is empty."""
        return SurfaceDistances.between(*self._surfaces, self.definition)

    @cached_property
    def lesions(self) -> LesionMatches:
        """Which true lesions were found; raises `ValueError` where the protocol has no rules for lesions."""
        if self.lesion_rules is None:
            raise ValueError("lesion-wise metrics need a protocol with rules for lesions")
        surfaces = self._surfaces
        if self.definition != "surfels":
            surfaces = surface_of(self.truth, self.spacing), surface_of(self.prediction, self.spacing)
        return match_lesions(self.truth, self.prediction, *surfaces, self.lesion_rules)

    @cached_property
    def _surfaces(self) -> tuple[Surface, Surface]:
        first, second = (surface_of(mask, self.spacing, self.definition) for mask in (self.truth, self.prediction))
        return first, second
