"""The one reader and the one writer of images and label maps: what they read is whole, and so is what they write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import new_file, unwritable, write_json
from nnunet_glims.geometry import SHEARED, Geometry, times
from nnunet_glims.image_formats import gipl, metaimage, nifti, nrrd, tiff
from nnunet_glims.image_formats.content import Damaged

CHECKS: dict[str, tuple[str, Callable[[Path], None]]] = {
    ".nrrd": ("NrrdImageIO", nrrd.check),
    ".nhdr": ("NrrdImageIO", nrrd.check),
    ".mha": ("MetaImageIO", metaimage.check),
    ".mhd": ("MetaImageIO", metaimage.check),
    ".gipl": ("GiplImageIO", gipl.check),
}
"""Ending -> SimpleITK's name of the format that it reads, and the function that raises `Damaged` unless a file is whole."""
IN_ONE_FILE = {".mhd": ".mha", ".nhdr": ".nrrd"}
"""Ending -> the ending for which SimpleITK writes header and voxels of this format to one file, which one rename replaces."""
NIFTI = (".nii.gz", ".nii")
TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class Image:
    """A 3D image as a file holds it.

    Attributes:
        voxels: (Z, Y, X), finite numbers of any type.
        geometry: geometry of the voxels, in x, y, z.
    """

    voxels: np.ndarray
    geometry: Geometry

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing in mm along the axes of `voxels` (z, y, x)."""
        return self.geometry.spacing[::-1]


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


def read_image(file: Path) -> Image:
    """Read a 3D image of finite numbers from a file that is whole. A fourth axis of length 1 is left out.

    Raises:
        ProcessingError: the file is missing, damaged, cut off or no image, it has several values a voxel, or voxels are NaN
            or infinite. The message begins with the file's name.
        UsageError: the image is not 3D.
    """
    image = _read(file)
    if not is_finite(image.voxels):
        raise ProcessingError(f"{file}: {not_finite(image.voxels)}: replace these values, or make the file again")
    return image


def read_label_map(file: Path) -> LabelMap:
    """Read a label map with `read_image`.

    Raises:
        ProcessingError: as for `read_image`.
        UsageError: the image is not 3D, or holds values other than the labels 0 to 255. The message names them.
    """
    image = read_image(file)
    voxels = image.voxels
    if voxels.dtype != np.uint8:
        with np.errstate(invalid="ignore", over="ignore"):
            labels = voxels.astype(np.uint8)
        different = labels != voxels
        if different.any():
            values = np.unique(voxels[different])
            shown = ", ".join(f"{value:.8g}" for value in values[:5].tolist())
            more = f" and {len(values) - 5} other values" if len(values) > 5 else ""
            raise UsageError(
                f"{file}: {int(different.sum())} voxels hold {shown}{more}, which are no labels (whole numbers from 0 to 255)"
            )
        voxels = labels
    return LabelMap(voxels, image.geometry)


def check_whole(file: Path) -> None:
    """Raise `ProcessingError` if an image's file is damaged or cut off. What it holds is not looked at."""
    name = file.name.lower()
    with _naming(file):
        if name.endswith(NIFTI):
            nifti.read(file)
        elif name.endswith(TIFF):
            tiff.read(file)
        else:
            for _, check in (CHECKS[ending] for ending in CHECKS if name.endswith(ending)):
                check(file)


def read_geometry(file: Path) -> Geometry:
    """Return the geometry that the header of an image states, with which the file need not be whole.

    Raises:
        ProcessingError: the header cannot be read. The message begins with the file's name.
    """
    if file.name.lower().endswith(TIFF):
        return _read(file).geometry
    with _naming(file):
        return Geometry.of_file(file)


def read_nifti(file: Path) -> tuple[np.ndarray, Geometry]:
    """Read a NIfTI file that is whole; its voxels need not be finite, nor the image 3D.

    Returns:
        The voxels along the file's own axes, (X, Y, Z) for a 3D image, with the file's scaling; and their geometry.

    Raises:
        ProcessingError: the file is missing, no NIfTI, damaged or cut off. The message begins with `FILE: cannot be read`.
    """
    with _naming(file):
        return nifti.read(file), Geometry.of_file(file)


def is_finite(values: np.ndarray) -> bool:
    """Return whether no value is NaN or infinite."""
    if values.dtype.kind != "f" or not values.size:
        return True
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(values.min()) and np.isfinite(values.max()))  # without an array of booleans


def not_finite(values: np.ndarray) -> str:
    """Return how many values are NaN and how many infinite, in words."""
    nans, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    counts = [f"{count} {word}" for count, word in ((nans, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(counts)} of {values.size} values"


def write_image(voxels: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write an image or a label map, read it back, and move it to its place.

    Args:
        voxels: (Z, Y, X).
        geometry: geometry of the voxels, in x, y, z.
        path: its ending names the format. An older file is replaced. The spacing of a TIFF file is written to CASE.json
            beside it, as nnU-Net does.

    Raises:
        ProcessingError: the file cannot be written, or what is on the disk is not what was written.
    """
    with new_file(path) as temporary:
        try:
            _write(voxels, geometry, temporary)
            written = _read(temporary).voxels  # SimpleITK does not notice a full disk
        except (RuntimeError, OSError, UsageError) as error:
            raise unwritable(path, _reason(error).removeprefix(f"{temporary}: ")) from None
        if written.shape != voxels.shape or not np.array_equal(written, voxels, equal_nan=voxels.dtype.kind == "f"):
            raise unwritable(path, "the file does not hold what was written to it")
    if path.name.lower().endswith(TIFF):
        write_json(tiff.spacing_file(path), {"spacing": geometry.spacing[::-1]})


def _write(voxels: np.ndarray, geometry: Geometry, file: Path) -> None:
    if file.name.lower().endswith(TIFF):
        tiff.write(file, voxels)
        return
    image = sitk.GetImageFromArray(voxels)
    geometry.describe(image)
    in_one_file = file.with_suffix(IN_ONE_FILE.get(file.suffix.lower(), file.suffix))
    sitk.WriteImage(image, str(in_one_file), True)
    in_one_file.rename(file)


def _read(file: Path) -> Image:
    """Read a 3D image from a file that is whole, whether its values are finite or not."""
    name = file.name.lower()
    with _naming(file):
        if name.endswith(NIFTI):
            voxels = nifti.read(file).T
            geometry = Geometry.of_file(file)
        elif name.endswith(TIFF):
            voxels, spacing = tiff.read(file)
            geometry = Geometry(voxels.shape[::-1], spacing[::-1], (0.0,) * 3, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
        else:
            geometry, voxels = _read_checked(file)
        if not geometry.is_right_angled:
            raise Damaged(SHEARED)
    if voxels.ndim != 3 or voxels.shape[::-1] != geometry.size:
        raise UsageError(f"{file}: has {voxels.ndim} axes ({times(voxels.shape[::-1])} voxels), not 3")
    return Image(voxels, geometry)


def _read_checked(file: Path) -> tuple[Geometry, np.ndarray]:
    """Check a file and read it with SimpleITK."""
    ending = next((ending for ending in CHECKS if file.name.lower().endswith(ending)), None)
    if ending is None:
        raise Damaged(f"images may end in {', '.join((*NIFTI, *CHECKS, *TIFF))}")
    library, check = CHECKS[ending]
    check(file)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(library)
    reader.SetFileName(str(file))
    image = reader.Execute()
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise Damaged(f"it has {image.GetNumberOfComponentsPerPixel()} values a voxel, not one")
    geometry, voxels = Geometry.of(image), sitk.GetArrayFromImage(image)
    return geometry, voxels.reshape(geometry.size[::-1])


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn what readers raise into an error that names the file."""
    try:
        if file.is_dir():
            raise Damaged("this is a folder, not an image")
        if not file.exists():
            raise Damaged("there is no such file")
        if not file.is_file():
            raise Damaged("this is no regular file")  # a pipe may never answer
        if not file.stat().st_size:
            raise Damaged("the file is empty: copy it again")
        yield
    except Damaged as error:
        raise ProcessingError(f"{file}: cannot be read: {error}") from None
    except MemoryError:
        raise ProcessingError(f"{file}: cannot be read: there is too little memory for its voxels") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ProcessingError(f"{file}: cannot be read: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
