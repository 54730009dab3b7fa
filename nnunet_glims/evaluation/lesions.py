"""True lesions and the predicted components that belong to them, as BraTS 2023 compares them (arXiv 2305.17033 and the
challenge's published protocol).

A true lesion is the part of the truth inside one connected component of the dilated truth. The predicted components that
touch the dilated lesion are compared with it together; all others are false positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from scipy.ndimage import binary_dilation, generate_binary_structure

from nnunet_glims.evaluation.surfaces import Surface, SurfaceDistances
from nnunet_glims.geometry import bounding_box


@dataclass(frozen=True)
class LesionRules:
    """The settings of the lesion-wise metrics, in which the challenges differ.

    Attributes:
        dilation: number of steps by which the truth is dilated, in which faces and edges are neighbours. Components that
            then touch each other are one lesion.
        ignored_mm3: true lesions of this volume (mm³) or less do not count. False positives of any volume count.
    """

    dilation: int
    ignored_mm3: float


@dataclass(frozen=True)
class LesionMatches:
    """The true lesions that count, each with the predicted components that belong to it.

    Attributes:
        dice: Dice of each lesion; 0 for a lesion that was missed.
        hd95: HD95 of each lesion in mm; None for a lesion that was missed.
        false: number of predicted components that belong to no lesion.
    """

    dice: Sequence[float]
    hd95: Sequence[float | None]
    false: int

    @property
    def missed(self) -> int:
        """Number of lesions that no predicted component touches."""
        return sum(distance is None for distance in self.hd95)

    @property
    def found(self) -> int:
        """Number of lesions that a predicted component touches."""
        return len(self.hd95) - self.missed

    @property
    def counted(self) -> int:
        """Number of lesions plus false positives, by which sums are divided."""
        return len(self.hd95) + self.false


def match_lesions(
    truth: np.ndarray,
    prediction: np.ndarray,
    truth_surface: Surface,
    prediction_surface: Surface,
    rules: LesionRules,
) -> LesionMatches:
    """Find the predicted components of each true lesion, and compute Dice and HD95 of each lesion.

    Args:
        truth, prediction: (X, Y, Z) boolean masks.
        truth_surface, prediction_surface: surfaces of both masks by the definition "surfels".
        rules: what counts as a lesion.
    """
    components, count = _components(prediction)
    near = bounding_box(truth, rules.dilation) or (slice(0, 1),) * 3  # dilation reaches no further than this box
    dilated, _ = _components(_dilated(truth[near], rules.dilation))
    lesions = np.where(truth[near], dilated, 0)
    touched = _touching(dilated, components[near])
    shared = _touching(lesions, components[near])
    lesion_sizes = np.bincount(lesions.ravel())
    component_sizes = np.bincount(components.ravel(), minlength=count + 1)
    lesion_of_surfel = _labels_at(truth_surface, lesions, [part.start for part in near])
    component_of_surfel = _labels_at(prediction_surface, components)
    voxel_mm3 = float(np.prod(truth_surface.spacing))

    dice: list[float] = []
    hd95: list[float | None] = []
    for lesion in range(1, len(lesion_sizes)):
        if lesion_sizes[lesion] * voxel_mm3 <= rules.ignored_mm3:
            continue
        touching = sorted(touched.get(lesion, ()))
        if not touching:
            dice.append(0.0)
            hd95.append(None)
            continue
        overlap = sum(shared.get(lesion, {}).values())
        dice.append(2 * overlap / float(lesion_sizes[lesion] + component_sizes[touching].sum()))
        distances = SurfaceDistances.between(
            truth_surface[lesion_of_surfel == lesion], prediction_surface[np.isin(component_of_surfel, touching)]
        )
        hd95.append(distances.hausdorff(95))
    belonging = {component for of_lesion in touched.values() for component in of_lesion}
    return LesionMatches(dice, hd95, count - len(belonging))


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the 26-connected components, numbered from 1, and how many there are."""
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    return labels, int(count)


def _dilated(mask: np.ndarray, steps: int) -> np.ndarray:
    """Return the mask, dilated by a number of steps, in which faces and edges are neighbours."""
    return binary_dilation(mask, generate_binary_structure(3, 2), iterations=steps) if steps else mask


def _touching(lesions: np.ndarray, components: np.ndarray) -> dict[int, dict[int, int]]:
    """Return lesion -> predicted component -> number of voxels that they share."""
    both = (lesions > 0) & (components > 0)
    many = int(components.max(initial=0)) + 1
    pairs, counts = np.unique(lesions[both].astype(np.int64) * many + components[both], return_counts=True)
    found: dict[int, dict[int, int]] = {}
    for pair, voxels in zip(pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(pair // many, {})[pair % many] = voxels
    return found


def _labels_at(surface: Surface, labels: np.ndarray, start: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """Return the label (n,) of the voxels around each sample of the surface; `labels` begin at the voxel `start`.

    Components have no corner in common, so there is only one label around each corner.
    """
    found = np.zeros(len(surface), labels.dtype)
    for offset in np.ndindex(2, 2, 2):
        voxels = np.clip(surface.points - offset - start, 0, np.subtract(labels.shape, 1))
        np.maximum(found, labels[tuple(voxels.T)], out=found)
    return found
