"""Label maps from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_glims.errors import UsageError
from nnunet_glims.geometry import Geometry


@dataclass(frozen=True)
class LabelMap:
    """A label map as a file holds it.

    Attributes:
        labels: (Z, Y, X) uint8.
        geometry: in x, y, z.
    """

    labels: np.ndarray
    geometry: Geometry

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along the axes of `labels`."""
        return self.geometry.spacing[::-1]


def read_label_map(file: Path) -> LabelMap:
    """Read any 3D format of SimpleITK's; raises `UsageError` where it is none, damaged, or holds other than labels 0 to 255."""
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UsageError(f"{file}: cannot be read: {lines[-1].strip()}") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        axes = image.GetDimension()
        raise UsageError(
            f"{file}: has {axes} axes and {image.GetNumberOfComponentsPerPixel()} values a voxel, not 3 and 1"
        )
    voxels = sitk.GetArrayFromImage(image)
    if voxels.dtype != np.uint8:
        labels = voxels.astype(np.uint8) if np.isfinite(voxels).all() else np.zeros(voxels.shape, np.uint8)
        if not np.array_equal(labels, voxels):
            raise UsageError(
                f"{file}: holds values from {voxels.min():g} to {voxels.max():g} that are no labels from 0 to 255"
            )
        voxels = labels
    return LabelMap(voxels, Geometry.of(image))
