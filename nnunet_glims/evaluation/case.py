"""One case: a true and a predicted label map to a table of metrics by region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_glims.evaluation.lesions import lesion_measures
from nnunet_glims.evaluation.overlap import Overlap, confusion_matrix
from nnunet_glims.evaluation.protocol import PRESETS, Protocol
from nnunet_glims.evaluation.regions import Regions
from nnunet_glims.evaluation.surfaces import SurfaceDistances, surface_of


@dataclass(frozen=True)
class CaseMeasures:
    """Results of one case.

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
    distance_if_empty = protocol.penalty_mm(truth.shape, spacing)
    if ignored is not None:
        counts = truth != ignored
        truth, prediction = np.where(counts, truth, 0), np.where(counts, prediction, 0)
        voxels = int(counts.sum())
    labels = 1 + max(int(truth.max()), int(prediction.max()), *(max(region) for region in regions.values()))
    box = _box(truth, prediction, margin=protocol.lesions.dilation if protocol.lesions else 0)
    truth, prediction = truth[box], prediction[box]
    confusion = confusion_matrix(truth, prediction, labels)
    confusion[0, 0] += voxels - int(confusion.sum())
    voxel_ml = float(np.prod(spacing)) / 1000
    measured = {}
    for name, region in regions.items():
        chosen = np.isin(np.arange(labels), region)
        overlap = Overlap.of_region(confusion, region)
        measured[name] = {
            **overlap.measures(voxel_ml),
            **_distances(
                chosen[truth], chosen[prediction], spacing, protocol, protocol.tolerance(name), distance_if_empty
            ),
        }
    return CaseMeasures(measured, confusion)


def _box(truth: np.ndarray, prediction: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Around all that is not background, with a margin in voxels."""
    foreground = (truth != 0) | (prediction != 0)
    slices = []
    for axis, size in enumerate(foreground.shape):
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(foreground.any(others))
        slices.append(
            slice(max(where[0] - margin, 0), min(where[-1] + 1 + margin, size)) if len(where) else slice(0, 1)
        )
    return tuple(slices)


def _distances(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    protocol: Protocol,
    tolerance: float,
    distance_if_empty: float,
) -> dict[str, float]:
    true_surface, predicted_surface = (surface_of(mask, spacing, protocol.surface) for mask in (truth, prediction))
    if len(true_surface) and len(predicted_surface):
        distances = SurfaceDistances.between(true_surface, predicted_surface, protocol.surface)
        measures = {
            "hd95": distances.hausdorff(95),
            "hd100": distances.hausdorff(100),
            "assd": distances.average(),
            "nsd": distances.within(tolerance),
        }
    else:
        agree = len(true_surface) == len(predicted_surface)
        distance = 0.0 if agree else distance_if_empty
        measures = {"hd95": distance, "hd100": distance, "assd": distance, "nsd": float(agree)}
    if protocol.lesions is None:
        return measures
    if protocol.surface != "surfels":
        true_surface, predicted_surface = (surface_of(mask, spacing) for mask in (truth, prediction))
    return measures | lesion_measures(truth, prediction, true_surface, predicted_surface, protocol.lesions)
