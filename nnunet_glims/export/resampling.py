"""Resample volumes as nnU-Net does by default (`resample_data_or_seg_to_shape`), without torch.

Volumes are resized with splines along all three axes. Where the spacing of one axis is much larger than that of the
others, each slice perpendicular to this axis is resized separately, and slices are then repeated or left out (nearest
neighbour).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from skimage.transform import resize

from nnunet_glims.export.exported import Resampling

Array = np.ndarray


def new_size(size: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the number of voxels along each axis after resampling from one spacing to another (both in mm)."""
    return tuple(round(old / new * length) for length, old, new in zip(size, spacing, new_spacing, strict=True))


def coarse_axis(settings: Resampling, spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """Return the axis whose slices are resampled separately; None where there is none, or two axes are equally coarse.

    Args:
        settings: says whether slices are resampled separately, or from which anisotropy on.
        spacing, new_spacing: mm before and after.
    """
    if settings.force_separate_z is False:
        return None
    decisive = spacing
    if settings.force_separate_z is None:
        anisotropic = [
            values for values in (spacing, new_spacing) if max(values) / min(values) > settings.anisotropy_threshold
        ]
        if not anisotropic:
            return None
        decisive = anisotropic[0]
    coarsest = [axis for axis, value in enumerate(decisive) if value == max(decisive)]
    return coarsest[0] if len(coarsest) == 1 else None


def resample(volume: Array, size: Sequence[int], order: int, axis: int | None) -> Array:
    """Return a volume (z, y, x) at another size; in float64, unless the size stays the same.

    Args:
        volume: (z, y, x).
        size: voxels afterwards.
        order: order of the splines; within slices only where there is a coarse axis.
        axis: the coarse axis, from `coarse_axis`, or None.
    """
    if volume.shape == tuple(size):
        return volume
    volume = volume.astype(np.float64)
    if axis is None:
        return resize(volume, size, order, mode="edge", anti_aliasing=False)
    slices = np.moveaxis(volume, axis, 0)
    in_plane = tuple(length for other, length in enumerate(size) if other != axis)
    if slices.shape[1:] != in_plane:
        slices = np.stack([resize(plane, in_plane, order, mode="edge", anti_aliasing=False) for plane in slices])
    if len(slices) != size[axis]:
        slices = slices[_nearest(len(slices), size[axis])]
    return np.moveaxis(slices, 0, axis)


def _nearest(length: int, new_length: int) -> Array:
    """Return for each new voxel of an axis the index of the old voxel with the nearest centre; of two, the later one."""
    centres = length / new_length * (np.arange(new_length) + 0.5) - 0.5
    return np.clip(np.floor(centres + 0.5).astype(int), 0, length - 1)
