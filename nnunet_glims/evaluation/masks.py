"""One region of one case, as metrics see it: two masks and what was measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnunet_glims.evaluation.lesions import LesionMatches, LesionRules, match_lesions
from nnunet_glims.evaluation.surfaces import Definition, Surface, SurfaceDistances, surface_of
from nnunet_glims.evaluation.voxels import VoxelCounts


@dataclass(frozen=True)
class RegionMasks:
    """The true and the predicted mask of one region. Distances and lesions are measured when a metric first asks for them.

    Attributes:
        truth, prediction: (X, Y, Z) boolean masks.
        voxels: counts of the whole image, of which the masks may be a part around both regions.
        spacing: mm along each axis.
        definition: what the surface of a mask is.
        tolerance_mm: of the normalised surface Dice.
        penalty_mm: the distance that counts where one mask is empty, for missed lesions and for false ones.
        lesion_rules: None where the protocol has no lesion-wise metrics.
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
