"""Show cases slice by slice: image, truth and predictions, each as one picture that holds all slices."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.colors import to_rgb
from PIL import Image

from nnunet_glims.errors import UsageError
from nnunet_glims.geometry import bounding_box
from nnunet_glims.images import read_image
from nnunet_glims.report.drawing import data_uri, grey, label_colour

MOST_SLICES = 36
LONGEST_SIDE = 224
"""Largest side of a slice in pixels: with 36 slices, a page with 20 cases of 5 entries has well under 15 MB."""
CT_WINDOW = (-160.0, 240.0)
"""Hounsfield units that are shown as black and as white: a window for soft tissue."""


@dataclass(frozen=True)
class ShownCase:
    """The files of a case that is shown.

    Attributes:
        name: name of the case.
        why: why the case was chosen, in words.
        truth: path of the true label map.
        predictions: entry -> path of the predicted label map, None if there is none.
        image: path of the image under the labels; None leaves the background black.
        is_ct: whether the image's values are Hounsfield units.
    """

    name: str
    why: str
    truth: Path
    predictions: Mapping[str, Path | None]
    image: Path | None = None
    is_ct: bool = False


def stack(case: ShownCase) -> dict[str, Any]:
    """Return the pictures of a case for the page's viewer, as JSON.

    Slices are axial, seen from below as radiologists do, cropped to the labels with a margin.

    Raises:
        ProcessingError: a file is damaged or no image.
        UsageError: the files are not on one grid.
    """
    truth, spacing = oriented(case.truth)
    predictions = {name: None if path is None else oriented(path)[0] for name, path in case.predictions.items()}
    maps = [truth, *(labels for labels in predictions.values() if labels is not None)]
    image = None if case.image is None else oriented(case.image)[0]
    for array in (*maps, *([image] if image is not None else [])):
        if array.shape != truth.shape:
            raise UsageError(f"case {case.name}: {array.shape} and {truth.shape} voxels: its files are not on one grid")
    foreground = np.any([labels > 0 for labels in maps], axis=0)
    chosen, rows, columns = shown_part(foreground)
    step = -(-max(rows.stop - rows.start, columns.stop - columns.start) // LONGEST_SIDE)
    part = np.ix_(chosen, np.arange(rows.start, rows.stop, step), np.arange(columns.start, columns.stop, step))
    shape = truth[part].shape
    across = _columns(shape[0])
    ground = np.zeros(shape) if image is None else _grey(image, part, case.is_ct)
    return {
        "case": case.name,
        "why": case.why,
        "slices": [int(z) + 1 for z in chosen],
        "start": int(foreground[chosen].sum((1, 2)).argmax()),
        "width": shape[2],
        "height": shape[1],
        "across": across,
        "aspect": round(shape[2] * spacing[0] / (shape[1] * spacing[1]), 4),
        "image": _jpeg(_atlas((255 * ground).astype(np.uint8), across)),
        "truth": _label_png(_atlas(truth[part], across)),
        "outline": _outline_png(_atlas(_outlines(truth[part]), across)),
        "entries": [
            {"name": name, "labels": None if labels is None else _label_png(_atlas(labels[part], across))}
            for name, labels in predictions.items()
        ],
    }


def oriented(path: Path) -> tuple[np.ndarray, Sequence[float]]:
    """Read an image with its axes turned to the patient's.

    Returns:
        (Z, Y, X) voxels, rows from front to back, columns from the patient's right to left; and the spacing in mm as x, y, z.

    Raises:
        ProcessingError, UsageError: as for `read_image`.
    """
    found = read_image(path)
    image = sitk.GetImageFromArray(found.voxels)
    found.geometry.describe(image)
    image = sitk.DICOMOrient(image, "LPS")
    return sitk.GetArrayFromImage(image), image.GetSpacing()


def shown_part(foreground: np.ndarray) -> tuple[np.ndarray, slice, slice]:
    """Choose the part of a case that is shown.

    Args:
        foreground: (Z, Y, X) whether a voxel has a label.

    Returns:
        At most `MOST_SLICES` slices that have labels, and the rows and columns around all labels.
    """
    box = bounding_box(foreground)
    if box is None:
        foreground = np.ones_like(foreground)
        box = tuple(slice(0, size) for size in foreground.shape)
    where = np.flatnonzero(foreground.any((1, 2)))
    if len(where) > MOST_SLICES:
        where = where[np.linspace(0, len(where) - 1, MOST_SLICES).round().astype(int)]
    rows, columns = (_widened(side, size) for side, size in zip(box[1:], foreground.shape[1:], strict=True))
    return where, rows, columns


def _widened(side: slice, size: int) -> slice:
    """Return a side of the box around the labels, extended at both ends by half of its length and at least 12 voxels."""
    margin = max(12, (side.stop - 1 - side.start) // 2)
    return slice(max(side.start - margin, 0), min(side.stop + margin, size))


def _grey(image: np.ndarray, part, is_ct: bool) -> np.ndarray:
    if is_ct:
        low, high = CT_WINDOW
        return np.clip((image[part] - low) / (high - low), 0, 1)
    return grey(image[part].astype(float))


def _columns(slices: int) -> int:
    """Return the number of slices in a row of the picture, chosen so that no side is too long for a browser."""
    return max(1, round(slices**0.5))


def _atlas(stacked: np.ndarray, across: int) -> np.ndarray:
    """Return one picture with slices (n, H, W) arranged row by row."""
    count, height, width = stacked.shape
    rows = -(-count // across)
    padded = np.zeros((rows * across, height, width), np.uint8)
    padded[:count] = stacked
    return padded.reshape(rows, across, height, width).swapaxes(1, 2).reshape(rows * height, across * width)


def _jpeg(picture: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=80)
    return data_uri(content.getvalue(), "image/jpeg")


def _outlines(labels: np.ndarray) -> np.ndarray:
    """Return the pixels of each label that have a neighbour with another label in their slice."""
    padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
    middle = padded[:, 1:-1, 1:-1]
    neighbours = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    return (middle > 0) & np.any([middle != neighbour for neighbour in neighbours], axis=0)


def _label_png(labels: np.ndarray) -> str:
    """Return a picture of labels in their colours."""
    return _png(labels, [label_colour(label) for label in range(1, 256)])


def _outline_png(outlines: np.ndarray) -> str:
    """Return a picture of outlines in white."""
    return _png(outlines, ["white"])


def _png(values: np.ndarray, colours: Sequence[str]) -> str:
    """Return a picture in which the values from 1 have these colours and 0 is transparent."""
    picture = Image.fromarray(values.astype(np.uint8)).convert("P")
    picture.putpalette([round(255 * part) for colour in ("black", *colours) for part in to_rgb(colour)])
    content = io.BytesIO()
    picture.save(content, "PNG", transparency=0, optimize=True)
    return data_uri(content.getvalue(), "image/png")
