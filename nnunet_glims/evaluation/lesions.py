"""Scores lesion by lesion, as BraTS 2023 ranks with them (arXiv 2305.17033 and the challenge's published protocol).

A lesion of the truth is what one connected component of the dilated truth holds. The predicted components that touch the
dilated lesion are compared with it together; the others are false positives. Missed lesions and false positives count with
Dice 0 and the penalty distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from scipy.ndimage import binary_dilation, generate_binary_structure

from nnunet_glims.evaluation.surfaces import Surface, SurfaceDistances


@dataclass(frozen=True)
class LesionRules:
    """What differs between the challenges.

    Attributes:
        dilation: steps by which true lesions are dilated, with faces and edges as neighbours. Closer ones are one lesion.
        ignored_mm3: true lesions of this volume or less do not count. False positives of any volume do.
        penalty_mm: the distance that counts for a missed lesion and for a false positive.
    """

    dilation: int
    ignored_mm3: float
    penalty_mm: float = 374.0


def lesion_measures(
    truth: np.ndarray,
    prediction: np.ndarray,
    truth_surface: Surface,
    prediction_surface: Surface,
    rules: LesionRules,
) -> dict[str, float]:
    """Lesion-wise Dice and HD95, and the counts of lesions found, missed and wrongly seen.

    Args:
        truth, prediction: 3D boolean masks.
        truth_surface, prediction_surface: their surfels.
    """
    components, count = _components(prediction)
    near = truth_surface.box(truth.shape, rules.dilation)  # dilation sees nothing beyond
    dilated, _ = _components(_dilated(truth[near], rules.dilation))
    lesions = np.where(truth[near], dilated, 0)
    touched = _touching(dilated, components[near])
    shared = _touching(lesions, components[near])
    lesion_sizes = np.bincount(lesions.ravel())
    component_sizes = np.bincount(components.ravel(), minlength=count + 1)
    lesion_of_surfel = _labels_at(truth_surface, lesions, [part.start for part in near])
    component_of_surfel = _labels_at(prediction_surface, components)
    voxel_mm3 = float(np.prod(truth_surface.spacing))

    dice, hd95 = [], []
    found = missed = 0
    for lesion in range(1, len(lesion_sizes)):
        if lesion_sizes[lesion] * voxel_mm3 <= rules.ignored_mm3:
            continue
        touching = sorted(touched.get(lesion, ()))
        if not touching:
            missed += 1
            dice.append(0.0)
            hd95.append(rules.penalty_mm)
            continue
        found += 1
        overlap = sum(shared.get(lesion, {}).values())
        dice.append(2 * overlap / float(lesion_sizes[lesion] + component_sizes[touching].sum()))
        distances = SurfaceDistances.between(
            truth_surface[lesion_of_surfel == lesion], prediction_surface[np.isin(component_of_surfel, touching)]
        )
        hd95.append(distances.hausdorff(95))
    false_positives = count - len({component for components_of in touched.values() for component in components_of})
    counted = found + missed + false_positives
    return {
        "lesion_dice": sum(dice) / counted if counted else 1.0,
        "lesion_hd95": (sum(hd95) + false_positives * rules.penalty_mm) / counted if counted else 0.0,
        "lesions_found": float(found),
        "lesions_missed": float(missed),
        "lesions_false": float(false_positives),
    }


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """26-connected components, numbered from 1, and how many there are."""
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    return labels, int(count)


def _dilated(mask: np.ndarray, steps: int) -> np.ndarray:
    return binary_dilation(mask, generate_binary_structure(3, 2), iterations=steps) if steps else mask


def _touching(lesions: np.ndarray, components: np.ndarray) -> dict[int, dict[int, int]]:
    """Lesion -> predicted component -> voxels they share."""
    both = (lesions > 0) & (components > 0)
    many = int(components.max(initial=0)) + 1
    pairs, counts = np.unique(lesions[both].astype(np.int64) * many + components[both], return_counts=True)
    found: dict[int, dict[int, int]] = {}
    for pair, voxels in zip(pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(pair // many, {})[pair % many] = voxels
    return found


def _labels_at(surface: Surface, labels: np.ndarray, start: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """(n,) the label around each corner of the surface; `labels` begin at the voxel `start`.

    Components have no corner in common, so there is only one.
    """
    found = np.zeros(len(surface), labels.dtype)
    for offset in np.ndindex(2, 2, 2):
        voxels = np.clip(surface.cells - offset - start, 0, np.subtract(labels.shape, 1))
        np.maximum(found, labels[tuple(voxels.T)], out=found)
    return found
