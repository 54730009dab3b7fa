"""Surfaces of binary masks and the distances between them, by three definitions in common use.

surfels: the surface lies between voxels. It is sampled at the corners of the voxel grid, and each sample has the area of the
    surface there. A Hausdorff percentile is the larger of the two directed ones. This is the definition of
    google-deepmind/surface-distance, which BraTS 2023 used.
voxels: the surface consists of the mask's voxels with a face neighbour outside of it. A Hausdorff percentile is the larger
    of the two directed ones. This is MONAI's definition.
pooled: the surface consists of the same voxels. A Hausdorff percentile is that of both directions' distances together.
    This is medpy's definition.

In all of them a mask ends at the image's border. Distances are Euclidean, in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from nnunet_glims.geometry import bounding_box

Definition = Literal["surfels", "voxels", "pooled"]
DEFINITIONS: tuple[Definition, ...] = ("surfels", "voxels", "pooled")


@dataclass(frozen=True)
class Surface:
    """Samples of a surface.

    Attributes:
        points: (n, 3) integers, the samples' positions in units of the spacing.
        weights: (n,) areas in mm² (surfels), or ones.
        spacing: mm along each axis.
    """

    points: np.ndarray
    weights: np.ndarray
    spacing: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, chosen: np.ndarray) -> Surface:
        return Surface(self.points[chosen], self.weights[chosen], self.spacing)

    @cached_property
    def tree(self) -> KDTree:
        """A k-d tree of the samples in mm."""
        return KDTree(self.points * self.spacing, balanced_tree=False, compact_nodes=False)

    def distances_to(self, other: Surface) -> np.ndarray:
        """Return the distance (n,) in mm from each sample to the nearest sample of a surface that is not empty."""
        _, nearest = other.tree.query(self.points * self.spacing)
        return np.sqrt((((self.points - other.points[nearest]) * self.spacing) ** 2).sum(1))


def surface_of(mask: np.ndarray, spacing: Sequence[float], definition: Definition = "surfels") -> Surface:
    """Return the surface of a 3D boolean mask; it is empty if the mask is."""
    x, y, z = (float(mm) for mm in spacing)
    box = bounding_box(mask)
    if box is None:
        return Surface(np.zeros((0, 3), int), np.zeros(0), (x, y, z))
    inner = np.pad(mask[box].view(np.uint8), 1)
    start = [part.start for part in box]
    if definition == "surfels":
        codes = corner_codes(inner)
        places = np.flatnonzero((codes + np.uint8(1)) > 1)  # neither 0, all outside, nor 255, all inside
        points = np.stack(np.unravel_index(places, codes.shape), 1)
        return Surface(points + start, corner_areas((x, y, z))[codes.ravel()[places]], (x, y, z))
    middle = inner[1:-1, 1:-1, 1:-1]
    inside = inner[:-2, 1:-1, 1:-1] & inner[2:, 1:-1, 1:-1]
    inside &= inner[1:-1, :-2, 1:-1]
    inside &= inner[1:-1, 2:, 1:-1]
    inside &= inner[1:-1, 1:-1, :-2]
    inside &= inner[1:-1, 1:-1, 2:]
    points = np.argwhere(middle > inside)
    return Surface(points + start, np.ones(len(points)), (x, y, z))


def corner_codes(padded: np.ndarray) -> np.ndarray:
    """Return for each corner of the voxel grid which of the 8 voxels around it are set, as a code of 8 bits.

    Args:
        padded: (X, Y, Z) zeros and ones, uint8.

    Returns:
        (X-1, Y-1, Z-1) uint8. Bit 4·(1-i) + 2·(1-j) + (1-k) is the voxel at offset (i, j, k).
    """
    pairs = (padded[:, :, :-1] << 1) | padded[:, :, 1:]
    squares = (pairs[:, :-1] << 2) | pairs[:, 1:]
    return (squares[:-1] << 4) | squares[1:]


@cache
def corner_areas(spacing: tuple[float, float, float]) -> np.ndarray:
    """Return the area (256,) in mm² of the surface around a corner, for each code.

    The surface is that of Lorensen and Cline's marching cubes (1987). It goes through the middles of the edges and encloses
    the inner or the outer voxels of the corner, whichever are fewer.
    """
    areas = np.zeros(256)
    for code, triangles in _triangles().items():
        first, second, third = (triangles * spacing).swapaxes(0, 1)
        areas[code] = np.linalg.norm(np.cross(second - first, third - first), axis=1).sum() / 2
    return areas


@cache
def _triangles() -> dict[int, np.ndarray]:
    """Return code -> the corners (n, 3, 3) of its n triangles, in voxels."""
    found = {}
    for code in range(1, 255):
        fewer = code if code.bit_count() <= 4 else 255 - code
        bits = np.array([fewer >> bit & 1 for bit in range(7, -1, -1)], float).reshape(2, 2, 2)
        vertices, faces, _, _ = marching_cubes(bits, 0.5, method="lorensen", allow_degenerate=True)
        found[code] = vertices[faces].astype(float)
    return found


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces, neither of which is empty.

    Attributes:
        from_truth: (n,) distance in mm from each sample of the true surface to the predicted one.
        from_prediction: (m,) distance in mm from each sample of the predicted surface to the true one.
        truth_weights, prediction_weights: (n,) and (m,) weights of the samples, as `Surface` has them.
        definition: how percentiles are taken.
    """

    from_truth: np.ndarray
    from_prediction: np.ndarray
    truth_weights: np.ndarray
    prediction_weights: np.ndarray
    definition: Definition = "surfels"

    @classmethod
    def between(cls, truth: Surface, prediction: Surface, definition: Definition = "surfels") -> SurfaceDistances:
        """Return the distances between two surfaces, neither of which is empty."""
        return cls(
            truth.distances_to(prediction),
            prediction.distances_to(truth),
            truth.weights,
            prediction.weights,
            definition,
        )

    def hausdorff(self, percentile: float) -> float:
        """Return the Hausdorff distance in mm at a percentile: 95 for HD95, 100 for the largest distance."""
        if self.definition == "pooled":
            return float(np.percentile(np.concatenate([self.from_truth, self.from_prediction]), percentile))
        if self.definition == "voxels":
            return float(max(np.percentile(part, percentile) for part in (self.from_truth, self.from_prediction)))
        return max(
            _weighted_percentile(self.from_truth, self.truth_weights, percentile),
            _weighted_percentile(self.from_prediction, self.prediction_weights, percentile),
        )

    def average(self) -> float:
        """Return the average symmetric surface distance in mm: the mean over both surfaces together, weighted by area."""
        total = self.from_truth @ self.truth_weights + self.from_prediction @ self.prediction_weights
        return float(total / (self.truth_weights.sum() + self.prediction_weights.sum()))

    def within(self, tolerance: float) -> float:
        """Return the normalised surface Dice: the part of both surfaces that is within `tolerance` mm of the other."""
        far = self.truth_weights[self.from_truth > tolerance].sum()
        far += self.prediction_weights[self.from_prediction > tolerance].sum()
        return float(1 - far / (self.truth_weights.sum() + self.prediction_weights.sum()))


def _weighted_percentile(distances: np.ndarray, weights: np.ndarray, percentile: float) -> float:
    """Return the smallest distance that at least `percentile` % of the weight does not exceed."""
    order = np.lexsort((weights, distances))
    reached = np.cumsum(weights[order]) / weights.sum()
    place = min(int(np.searchsorted(reached, percentile / 100)), len(order) - 1)
    return float(distances[order[place]])
