"""The settings of an evaluation, and the presets of the challenges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, nan
from typing import Any, Literal

import numpy as np

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.lesions import LesionRules
from nnunet_glims.evaluation.metrics import METRICS, Metric
from nnunet_glims.evaluation.surfaces import DEFINITIONS, Definition
from nnunet_glims.validation import nearest

Penalty = Literal["diagonal", "brats2021", "brats2023", "nan"]
PENALTIES: Mapping[str, float | None] = {"diagonal": None, "brats2021": 373.1287, "brats2023": 374.0, "nan": nan}
"""Name -> mm that a distance counts where one mask is empty, for missed lesions and for false ones; None is the image's
own diagonal.

brats2021 is the diagonal of 240 × 240 × 155 voxels of 1 mm, with the digits that the challenge used.
"""


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation.

    Attributes:
        surface: name of a definition of surfaces, see `nnunet_glims.evaluation.surfaces`.
        penalty: a key of `PENALTIES`. The penalty holds for all distances, those of whole regions and those of lesions.
        tolerance_mm: tolerance of the normalised surface Dice in mm.
        region_tolerances_mm: region -> tolerance in mm, for regions with a tolerance of their own.
        lesions: settings of the lesion-wise metrics; None leaves these metrics out.
    """

    surface: Definition = "surfels"
    penalty: Penalty = "diagonal"
    tolerance_mm: float = 1.0
    region_tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    lesions: LesionRules | None = None

    def __post_init__(self) -> None:
        if self.surface not in DEFINITIONS:
            raise UsageError(
                f"surface definition {self.surface!r} is unknown: {nearest(self.surface, list(DEFINITIONS))}"
            )
        if self.penalty not in PENALTIES:
            raise UsageError(f"penalty {self.penalty!r} is unknown: {nearest(self.penalty, list(PENALTIES))}")
        for tolerance in (self.tolerance_mm, *self.region_tolerances_mm.values()):
            if not 0 <= tolerance < inf:
                raise UsageError(f"tolerance {tolerance} mm: it must be a number, 0 or more")

    def tolerance(self, region: str) -> float:
        """Return the tolerance of a region in mm."""
        return self.region_tolerances_mm.get(region, self.tolerance_mm)

    def penalty_mm(self, shape: Sequence[int], spacing: Sequence[float]) -> float:
        """Return the distance in mm that the penalty stands for, in an image of that shape (voxels) and spacing (mm)."""
        fixed = PENALTIES[self.penalty]
        return float(np.linalg.norm(np.multiply(shape, spacing))) if fixed is None else fixed

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that an evaluation with these settings has, in the order of the tables' columns."""
        return tuple(metric for metric in METRICS if self.lesions is not None or metric.needs != "lesions")

    def as_json(self) -> dict[str, Any]:
        """Return all settings as JSON, as summary.json has them."""
        return {**asdict(self), "region_tolerances_mm": dict(self.region_tolerances_mm)}


_BRATS2023 = Protocol(penalty="brats2023")
PRESETS: Mapping[str, Protocol] = {
    "default": Protocol(),
    "brats2021": Protocol(penalty="brats2021"),
    "brats2023-gli": replace(_BRATS2023, lesions=LesionRules(dilation=3, ignored_mm3=50)),
    "brats2023-ssa": replace(_BRATS2023, lesions=LesionRules(dilation=3, ignored_mm3=50)),
    "brats2023-ped": replace(_BRATS2023, lesions=LesionRules(dilation=3, ignored_mm3=50)),
    "brats2023-men": replace(_BRATS2023, lesions=LesionRules(dilation=1, ignored_mm3=50)),
    "brats2023-met": replace(_BRATS2023, lesions=LesionRules(dilation=1, ignored_mm3=2)),
}


def protocol_for(
    regions: Sequence[str],
    preset: str = "default",
    surface: str | None = None,
    penalty: str | None = None,
    tolerance: float | None = None,
    region_tolerances: Mapping[str, float] | None = None,
) -> Protocol:
    """Return a preset with some settings changed; None leaves a setting as the preset has it.

    Args:
        regions: names of the regions that are evaluated.
        preset: a key of `PRESETS`.
        surface: name of a definition of surfaces.
        penalty: a key of `PENALTIES`; only the preset "default" accepts one.
        tolerance: tolerance in mm for all regions.
        region_tolerances: region -> tolerance in mm.

    Raises:
        UsageError: a name is unknown, a tolerance is negative, or a penalty is given together with a challenge's preset.
    """
    changes: dict[str, Any] = {}
    if penalty is not None:
        if preset != "default":
            own = preset_named(preset).penalty
            raise UsageError(
                f"penalty {penalty!r}: the preset {preset} has the penalty of its challenge, {own} ({PENALTIES[own]} mm), for "
                "whole regions and for lesions. Leave one of the two out"
            )
        changes["penalty"] = penalty
    if surface is not None:
        changes["surface"] = surface
    if tolerance is not None:
        changes["tolerance_mm"] = tolerance
    if region_tolerances:
        for region in region_tolerances:
            if region not in regions:
                raise UsageError(f"tolerance of region {region!r}: it is unknown: {nearest(region, list(regions))}")
        changes["region_tolerances_mm"] = dict(region_tolerances)
    return replace(preset_named(preset), **changes)


def preset_named(name: str) -> Protocol:
    """Return the preset of that name; raise `UsageError` with the nearest known name if there is none."""
    if name not in PRESETS:
        raise UsageError(f"preset {name!r} is unknown: {nearest(name, list(PRESETS))}")
    return PRESETS[name]
