"""One case: from a true and a predicted label map to the metrics of each region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_glims.evaluation.masks import RegionMasks
from nnunet_glims.evaluation.protocol import PRESETS, Protocol
from nnunet_glims.evaluation.regions import Regions
from nnunet_glims.evaluation.voxels import VoxelCounts, confusion_matrix
from nnunet_glims.geometry import bounding_box


@dataclass(frozen=True)
class CaseMeasures:
    """The results of one case.

    Attributes:
        regions: region -> metric -> value.
        confusion: (labels, labels) voxels by true label (row) and predicted label (column).
    """

    regions: Mapping[str, Mapping[str, float]]
    confusion: np.ndarray


def measure_case(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    regions: Regions,
    protocol: Protocol = PRESETS["default"],
    ignored: int | None = None,
) -> CaseMeasures:
    """Evaluate one case.

    Args:
        truth, prediction: 3D label maps of integers from 0, on the same grid.
        spacing: mm along each axis.
        regions: name -> labels.
        protocol: what is measured and how.
        ignored: a label of the truth whose voxels do not count.

    Raises:
        ValueError: shapes that differ, or that are not 3D.
    """
    if truth.ndim != 3 or truth.shape != prediction.shape:
        raise ValueError(
            f"truth of shape {truth.shape}, prediction of shape {prediction.shape}: both must be the same, 3D"
        )
    voxels = truth.size
    penalty_mm = protocol.penalty_mm(truth.shape, spacing)
    if ignored is not None:
        counts = truth != ignored
        truth, prediction = np.where(counts, truth, 0), np.where(counts, prediction, 0)
        voxels = int(counts.sum())
    labels = 1 + max(int(truth.max()), int(prediction.max()), *(max(region) for region in regions.values()))
    margin = protocol.lesions.dilation if protocol.lesions else 0
    box = bounding_box((truth != 0) | (prediction != 0), margin) or (slice(0, 1),) * 3
    truth, prediction = truth[box], prediction[box]
    confusion = confusion_matrix(truth, prediction, labels)
    confusion[0, 0] += voxels - int(confusion.sum())
    measured = {}
    for name, region in regions.items():
        inside = np.isin(np.arange(labels), region)
        masks = RegionMasks(
            inside[truth],
            inside[prediction],
            VoxelCounts.of_region(confusion, region),
            tuple(spacing),
            protocol.surface,
            protocol.tolerance(name),
            penalty_mm,
            protocol.lesions,
        )
        measured[name] = {metric.name: metric.value(masks) for metric in protocol.metrics}
    return CaseMeasures(measured, confusion)
