"""The metrics: one class each. `METRICS` lists them in the order of the columns of tables."""

from __future__ import annotations

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.metrics.lesions import FalseLesions, LesionDice, LesionHD95, LesionsFound, LesionsMissed
from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.metrics.overlap import DICE, IoU, Precision, Sensitivity, Specificity
from nnunet_glims.evaluation.metrics.surface import ASSD, HD95, HD100, NSD
from nnunet_glims.evaluation.metrics.volumes import PredictedVolume, RelativeVolumeError, TrueVolume
from nnunet_glims.validation import nearest

METRICS: tuple[Metric, ...] = (
    DICE,
    IoU(),
    Precision(),
    Sensitivity(),
    Specificity(),
    TrueVolume(),
    PredictedVolume(),
    RelativeVolumeError(),
    HD95(),
    HD100(),
    ASSD(),
    NSD(),
    LesionDice(),
    LesionHD95(),
    LesionsFound(),
    LesionsMissed(),
    FalseLesions(),
)


def metric_named(name: str) -> Metric:
    """Return the metric of that name; raise `UsageError` with the nearest known name if there is none."""
    for metric in METRICS:
        if metric.name == name:
            return metric
    raise UsageError(f"metric {name!r} is unknown: {nearest(name, [metric.name for metric in METRICS])}")
