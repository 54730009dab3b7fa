"""The position of an image's voxels in space, and the bounding box of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SPACING_TOLERANCE_MM = 1e-3
ORIGIN_TOLERANCE_MM = 1e-2
DIRECTION_TOLERANCE = 1e-3
"""By how much the geometries of a case's files may differ, because many files store them with few digits."""

SHEARED = (
    "its axes are sheared (not at right angles), and SimpleITK reads no such files. nnU-Net's NibabelIO does, and nibabel: "
    "resample the image to a grid with right angles, for example with nibabel.processing.resample_to_output"
)


@dataclass(frozen=True)
class Geometry:
    """The position of an image's voxels in space, as SimpleITK and nnU-Net read it.

    Attributes:
        size: number of voxels along x, y, z.
        spacing: mm along x, y, z.
        origin: position of the first voxel in mm.
        direction: directions of the axes, row by row.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of_file(cls, file: Path) -> Geometry:
        """Read the geometry from a file's header; raise `RuntimeError` where SimpleITK cannot read it."""
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if "orthonormal" not in str(error):
                raise
            raise RuntimeError(SHEARED) from None
        return cls.of(reader)

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> Geometry:
        """Return the geometry of an image, or of the file whose header a reader has read.

        Axes of length 1 after the third are left out, as NIfTI files of a single volume may have them.
        """
        size, direction = image.GetSize(), image.GetDirection()
        axes = len(size)
        kept = 3 if axes > 3 and set(size[3:]) == {1} else axes
        rows = [direction[row * axes : row * axes + kept] for row in range(kept)]
        return cls(size[:kept], image.GetSpacing()[:kept], image.GetOrigin()[:kept], tuple(sum(rows, ())))

    @property
    def is_right_angled(self) -> bool:
        """Whether the axes are at right angles to each other, within the tolerance of directions."""
        directions = np.reshape(self.direction, (len(self.size), -1))
        return np.allclose(directions @ directions.T, np.eye(len(directions)), rtol=0, atol=10 * DIRECTION_TOLERANCE)

    def describe(self, image: sitk.Image) -> None:
        """Set spacing, origin and direction of an image."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)

    def difference(self, other: Geometry) -> str | None:
        """Return what differs by more than the tolerances, in words; None if nothing does."""
        if self.size != other.size:
            return f"has {times(self.size)} voxels, not {times(other.size)}"
        for what, tolerance in (
            ("spacing", SPACING_TOLERANCE_MM),
            ("origin", ORIGIN_TOLERANCE_MM),
            ("direction", DIRECTION_TOLERANCE),
        ):
            mine, its = getattr(self, what), getattr(other, what)
            if not np.allclose(mine, its, rtol=0, atol=tolerance):
                return f"has {what} {_rounded(mine)}, not {_rounded(its)}"
        return None


def bounding_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...] | None:
    """Return the smallest box that holds every non-zero voxel of a mask.

    Args:
        mask: an array of any number of axes; every voxel other than zero counts.
        margin: number of voxels that are added to the box on each side. The box does not go beyond the array.

    Returns:
        A slice for each axis, or None where the mask has no voxel other than zero.
    """
    box: list[slice] = []
    part = mask
    for axis, length in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(part.any(axis=others))
        if not len(filled):
            return None
        first, last = int(filled[0]), int(filled[-1])
        part = part[(slice(None),) * axis + (slice(first, last + 1),)]  # other axes are searched in this part
        box.append(slice(max(first - margin, 0), min(last + 1 + margin, length)))
    return tuple(box)


def times(size: Sequence[float]) -> str:
    """Return numbers in the form "240×240×155"."""
    return "×".join(map(str, size))


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]
