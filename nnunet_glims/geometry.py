"""Where an image's voxels lie in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SPACING_TOLERANCE_MM = 1e-3
ORIGIN_TOLERANCE_MM = 1e-2
DIRECTION_TOLERANCE = 1e-3
"""By how much the geometry of a case's files may differ: many store it with few digits."""


@dataclass(frozen=True)
class Geometry:
    """Where voxels lie, as nnU-Net reads it (SimpleITK: x, y, z)."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of_file(cls, file: Path) -> Geometry:
        """From the file's header; raises `RuntimeError` where SimpleITK cannot read it."""
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        return cls.of(reader)

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> Geometry:
        """Of an image, or of the file that a reader looked into."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def difference(self, other: Geometry) -> str | None:
        """What differs beyond the tolerances, in words; None if nothing does."""
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


def times(size: Sequence[int]) -> str:
    """ "240×240×155" """
    return "×".join(map(str, size))


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]
