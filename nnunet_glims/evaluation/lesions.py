"""True lesions and the predicted components that belong to them, as BraTS 2023 compares them (arXiv 2305.17033 and the
challenge's published protocol).

A lesion of the truth is what one connected component of the dilated truth holds. The predicted components that touch the
dilated lesion are compared with it together; the others are false positives.
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
    """What differs between the challenges.

    Attributes:
        dilation: steps by which true lesions are dilated, with faces and edges as neighbours. Closer ones are one lesion.
        ignored_mm3: true lesions of this volume or less do not count. False positives of any volume do.
    """

    dilation: int
    ignored_mm3: float


@dataclass(frozen=True)
class LesionMatches:
    """The true lesions that count, each with the predicted components that belong to it.

    Attributes:
        dice: Dice of each lesion; 0 for a missed one.
        hd95: HD95 of each lesion in mm; None for a missed one.
        false: predicted components that belong to no lesion.
    """

    dice: Sequence[float]
    hd95: Sequence[float | None]
    false: int

    @property
    def missed(self) -> int:
        """Lesions that no predicted component touches."""
        return sum(distance is None for distance in self.hd95)

    @property
    def found(self) -> int:
        """Lesions that a predicted component touches."""
        return len(self.hd95) - self.missed

    @property
    def counted(self) -> int:
        """Lesions and false positives, which means are over."""
        return len(self.hd95) + self.false


def match_lesions(
    truth: np.ndarray,
    prediction: np.ndarray,
    truth_surface: Surface,
    prediction_surface: Surface,
    rules: LesionRules,
) -> LesionMatches:
    """Find each true lesion's predicted components, and compare them.

    Args:
        truth, prediction: (X, Y, Z) boolean masks.
        truth_surface, prediction_surface: their surfels.
        rules: what counts as a lesion.
    """
    components, count = _components(prediction)
    near = bounding_box(truth, rules.dilation) or (slice(0, 1),) * 3  # dilation sees nothing beyond
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
    """26-connected components, numbered from 1, and how many there are."""
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    return labels, int(count)


def _dilated(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask, dilated by so many steps with faces and edges as neighbours."""
    return binary_dilation(mask, generate_binary_structure(3, 2), iterations=steps) if steps else mask


def _touching(lesions: np.ndarray, components: np.ndarray) -> dict[int, dict[int, int]]:
    """Lesion -> predicted component -> number of voxels that they share."""
    both = (lesions > 0) & (components > 0)
    many = int(components.max(initial=0)) + 1
    pairs, counts = np.unique(lesions[both].astype(np.int64) * many + components[both], return_counts=True)
    found: dict[int, dict[int, int]] = {}
    for pair, voxels in zip(pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(pair // many, {})[pair % many] = voxels
    return found


def _labels_at(surface: Surface, labels: np.ndarray, start: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """(n,) the label of the voxels around each sample of the surface; `labels` begin at the voxel `start`.

    Components have no corner in common, so there is only one label around each corner.
    """
    found = np.zeros(len(surface), labels.dtype)
    for offset in np.ndindex(2, 2, 2):
        voxels = np.clip(surface.points - offset - start, 0, np.subtract(labels.shape, 1))
        np.maximum(found, labels[tuple(voxels.T)], out=found)
    return found
