"""3D TIFF (.tif, .tiff), read as nnU-Net does: a page a slice, and the spacing in a JSON file beside the image."""

from __future__ import annotations

import re
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np

from nnunet_glims.files import read_json
from nnunet_glims.image_formats.content import Damaged

MOST_COMPRESSED = 2000
"""By how much the methods of TIFF can compress at most; what a file states beyond would be zeros that it does not hold."""


def read(file: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return the voxels (Z, Y, X) of a TIFF file, and their spacing in mm along z, y, x.

    The spacing is that of CASE.json beside CASE.tif or CASE_0000.tif; without this file it is 1 mm, as for nnU-Net.

    Raises:
        Damaged: this is no TIFF file, or pages or their data are damaged or cut off.
        OSError: a file cannot be read.
    """
    import tifffile  # few images are TIFF

    try:
        with tifffile.TiffFile(file) as opened:
            pages = list(opened.pages)
            _check_pages(opened, file.stat().st_size)
            voxels = opened.asarray()
            if voxels.ndim == 3 and len(opened.series) == 1 and len(pages) not in (1, len(voxels)):
                raise Damaged(f"it has {len(pages)} pages for {len(voxels)} slices")
    except (Damaged, OSError):
        raise
    except Exception as error:  # tifffile checks little by itself, and raises many kinds
        raise Damaged(f"this is no whole TIFF file ({error})") from None
    return voxels, _spacing(file)


def _check_pages(opened, size: int) -> None:
    """Check that all pages and the strips or tiles of their data lie inside of the file."""
    offset = opened.pages[0].offset
    seen = set()
    width, count = (8, 8) if opened.is_bigtiff else (4, 2)
    entry = 20 if opened.is_bigtiff else 12
    order: Literal["little", "big"] = "little" if opened.byteorder == "<" else "big"
    handle = opened.filehandle
    while offset:
        if offset in seen or offset + count > size:
            raise Damaged("the list of its pages is damaged or cut off")
        seen.add(offset)
        handle.seek(offset)
        entries = int.from_bytes(handle.read(count), order)
        handle.seek(offset + count + entries * entry)
        following = handle.read(width)
        if len(following) < width:
            raise Damaged("the list of its pages is damaged or cut off")
        offset = int.from_bytes(following, order)
    if len(seen) != len(opened.pages):
        raise Damaged("the list of its pages is damaged or cut off")
    first = opened.pages[0]
    if len(seen) * first.nbytes > MOST_COMPRESSED * size:
        raise Damaged(
            f"it states {len(seen)} pages of {first.shape} pixels, too many for its {size:,} bytes: copy it again"
        )
    for page in opened.pages:
        layout = [(one.shape, one.dtype, one.compression, one.photometric, one.predictor) for one in (page, first)]
        if layout[0] != layout[1]:
            raise Damaged(f"page {page.index + 1} has another size or type than the first: {layout[0]}, {layout[1]}")
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            if not start or not length or start + length > size:
                raise Damaged("data of its pages are missing or cut off")


def write(file: Path, voxels: np.ndarray) -> None:
    """Write voxels (Z, Y, X) as a TIFF file with a page a slice and checksums, as nnU-Net does."""
    import tifffile

    tifffile.imwrite(file, voxels, compression="zlib", photometric="minisblack")


def spacing_file(file: Path) -> Path:
    """Return the path of the JSON file that states the spacing of a TIFF file."""
    return file.with_name(re.sub(r"_\d{4}$", "", file.stem) + ".json")


def _spacing(file: Path) -> tuple[float, float, float]:
    beside = next((place for place in (spacing_file(file), file.with_suffix(".json")) if place.is_file()), None)
    if beside is None:
        return 1.0, 1.0, 1.0
    try:
        z, y, x = (float(value) for value in read_json(beside)["spacing"])
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{beside.name} beside it does not state its spacing as three numbers") from None
    if not all(isfinite(value) and value > 0 for value in (z, y, x)):
        raise Damaged(f"{beside.name} beside it states a spacing of {z:g}, {y:g}, {x:g}")
    return z, y, x
