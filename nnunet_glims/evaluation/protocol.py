"""What is measured and how: the settings of an evaluation, and those of the challenges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, nan
from typing import Any, Literal

import numpy as np

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.lesions import LesionRules
from nnunet_glims.evaluation.surfaces import DEFINITIONS, Definition
from nnunet_glims.validation import nearest

Penalty = Literal["diagonal", "brats2021", "brats2023", "nan"]
PENALTIES: Mapping[str, float | None] = {"diagonal": None, "brats2021": 373.1287, "brats2023": 374.0, "nan": nan}
"""mm that a distance counts where one of the masks is empty; None is the image's own diagonal.

brats2021 is the diagonal of 240 × 240 × 155 voxels of 1 mm, rounded as that challenge has it.
"""


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
        name: in files.
        title: for readers.
        unit: "" for a number.
        best: the value of perfect agreement; None where there is no such value.
        higher_is_better: None where larger or smaller is neither better nor worse.
    """

    name: str
    title: str
    unit: str = ""
    best: float | None = 1.0
    higher_is_better: bool | None = True


METRICS = (
    Metric("dice", "Dice"),
    Metric("iou", "IoU"),
    Metric("precision", "Precision"),
    Metric("sensitivity", "Sensitivity"),
    Metric("specificity", "Specificity"),
    Metric("truth_ml", "True volume", "ml", None, None),
    Metric("volume_ml", "Volume", "ml", None, None),
    Metric("volume_error", "Relative volume error", "", 0.0, None),
    Metric("hd95", "HD95", "mm", 0.0, False),
    Metric("hd100", "HD", "mm", 0.0, False),
    Metric("assd", "ASSD", "mm", 0.0, False),
    Metric("nsd", "NSD"),
    Metric("lesion_dice", "Lesion-wise Dice"),
    Metric("lesion_hd95", "Lesion-wise HD95", "mm", 0.0, False),
    Metric("lesions_found", "Lesions found", "", None, None),
    Metric("lesions_missed", "Lesions missed", "", 0.0, False),
    Metric("lesions_false", "False lesions", "", 0.0, False),
)


def metric_named(name: str) -> Metric:
    """The metric of that name; raises `UsageError` with the nearest right one."""
    for metric in METRICS:
        if metric.name == name:
            return metric
    raise UsageError(f"metric {name!r} is unknown: {nearest(name, [metric.name for metric in METRICS])}")


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation.

    Attributes:
        surface: a definition of `nnunet_glims.evaluation.surfaces`.
        penalty: a key of `PENALTIES`.
        tolerance_mm: of NSD.
        region_tolerances_mm: region -> its own tolerance.
        lesions: rules of lesion-wise scores; None leaves them out.
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
        """mm, of that region."""
        return self.region_tolerances_mm.get(region, self.tolerance_mm)

    def penalty_mm(self, shape: Sequence[int], spacing: Sequence[float]) -> float:
        """Distance that counts for an image of that shape, where one mask is empty."""
        fixed = PENALTIES[self.penalty]
        return float(np.linalg.norm(np.multiply(shape, spacing))) if fixed is None else fixed

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The columns that it gives."""
        return tuple(metric for metric in METRICS if self.lesions or not metric.name.startswith("lesion"))

    def as_json(self) -> dict[str, Any]:
        """All settings, as kept beside results."""
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


def preset_named(name: str) -> Protocol:
    """The settings of that name; raises `UsageError` with the nearest right one."""
    if name not in PRESETS:
        raise UsageError(f"preset {name!r} is unknown: {nearest(name, list(PRESETS))}")
    return PRESETS[name]
