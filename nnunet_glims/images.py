"""Reading and writing of images and label maps."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import new_file, unwritable
from nnunet_glims.geometry import Geometry


@dataclass(frozen=True)
class LabelMap:
    """A label map as a file holds it.

    Attributes:
        labels: (Z, Y, X) uint8.
        geometry: geometry of the voxels, in x, y, z.
    """

    labels: np.ndarray
    geometry: Geometry

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing in mm along the axes of `labels` (z, y, x)."""
        return self.geometry.spacing[::-1]


def read_label_map(file: Path) -> LabelMap:
    """Read a label map in any 3D format of SimpleITK.

    Raises:
        ProcessingError: SimpleITK cannot read the file, because it is damaged, missing, or no image.
        UsageError: the image is not 3D, or holds values other than the labels 0 to 255.
    """
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise ProcessingError(f"{file}: cannot be read: {_reason(error)}") from None
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


def read_nifti(file: Path) -> tuple[np.ndarray, Geometry]:
    """Read a NIfTI file to its last byte, with its checksum where it is compressed.

    Returns:
        The voxels along the file's own axes, (X, Y, Z) for a 3D image, with the file's scaling; and their geometry.

    Raises:
        ProcessingError: the file is missing, no NIfTI, damaged or cut off. The message begins with `FILE: cannot be read`.
    """
    import nibabel  # prediction with exported models uses this module and does without nibabel

    damages = (OSError, EOFError, ValueError, zlib.error, RuntimeError, nibabel.filebasedimages.ImageFileError)
    try:
        geometry = Geometry.of_file(file)
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)  # checks the length and the sum over all bytes
        return np.asanyarray(nibabel.Nifti1Image.from_bytes(content).dataobj), geometry
    except damages as error:
        raise ProcessingError(f"{file}: cannot be read: {_reason(error)}") from None


def check_compressed(file: Path) -> None:
    """Read a gzip file to its end, because SimpleITK reads zeros from a truncated file. Other files are not read.

    Raises:
        ProcessingError: the file is damaged or cut off.
    """
    if file.suffix != ".gz":
        return
    try:
        with gzip.open(file) as content:
            while content.read(2**24):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise ProcessingError(f"{file}: this file is damaged or cut off ({error}): copy it again") from None


def write_image(voxels: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write an image or a label map, read it back, and move it to its place.

    Args:
        voxels: (Z, Y, X).
        geometry: geometry of the voxels, in x, y, z.
        path: its ending names the format. An older file is replaced.

    Raises:
        ProcessingError: the file cannot be written, or what is on the disk is not what was written.
    """
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with new_file(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), True)
            check_compressed(temporary)  # SimpleITK does not notice a full disk
            written = sitk.GetArrayFromImage(sitk.ReadImage(str(temporary)))
        except (RuntimeError, OSError) as error:
            raise unwritable(path, _reason(error)) from None
        finite = np.isfinite(voxels)  # SimpleITK reads zeros where a NIfTI file has NaN or infinity
        if written.shape != voxels.shape or not np.array_equal(written[finite], voxels[finite]):
            raise unwritable(path, "the file does not hold what was written to it")


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
