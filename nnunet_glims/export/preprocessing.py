"""Preprocess an image as nnU-Net's DefaultPreprocessor does, without torch and nnU-Net."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_fill_holes

from nnunet_glims.errors import ProcessingError
from nnunet_glims.export.exported import ExportedModel, Normalization, NormalizationScheme
from nnunet_glims.export.resampling import coarse_axis, new_size, resample
from nnunet_glims.geometry import bounding_box, times

Array = np.ndarray
MOST_VOXELS = 2**31
"""Largest number of voxels of a resampled image, 1290³."""


@dataclass(frozen=True)
class PreprocessedImage:
    """A preprocessed image, and what is needed to bring a prediction back to the grid of the original image.

    Attributes:
        data: (channels, z, y, x), float32, normalised, at the model's spacing.
        crop: bounding box of the non-zero voxels in the transposed image.
        size: size of the transposed image in voxels.
        spacing: spacing of the transposed image in mm.
    """

    data: Array
    crop: tuple[slice, ...]
    size: tuple[int, ...]
    spacing: tuple[float, ...]


def preprocess(image: Array, spacing: Sequence[float], model: ExportedModel) -> PreprocessedImage:
    """Transpose, crop, normalise and resample an image as nnU-Net's DefaultPreprocessor does.

    Args:
        image: (channels, z, y, x).
        spacing: mm along z, y, x.
        model: the exported model, whose settings are applied.

    Raises:
        ProcessingError: at the model's spacing the image would have an axis without voxels, or more voxels than any memory
            holds.
    """
    image = image.transpose([0, *(1 + axis for axis in model.transpose_forward)]).astype(np.float32)
    spacing = tuple(float(spacing[axis]) for axis in model.transpose_forward)
    size = image.shape[1:]
    inside = binary_fill_holes((image != 0).any(axis=0))
    crop = bounding_box(inside) or tuple(slice(0, length) for length in size)
    every_channel = (slice(None), *crop)
    image, inside = image[every_channel], inside[crop]
    new = new_size(image.shape[1:], spacing, model.spacing)
    if min(new) < 1:
        needed = [
            max(length, int(own / its / 2) + 1)
            for length, its, own in zip(image.shape[1:], spacing, model.spacing, strict=True)
        ]
        raise ProcessingError(
            f"the part of the image that is not 0 has {times(image.shape[1:])} voxels of {times(spacing)} mm, which is less "
            f"than a voxel of the model's {times(model.spacing)} mm: at least {times(needed)} are needed"
        )
    if math.prod(new) > MOST_VOXELS:
        raise ProcessingError(
            f"{times(image.shape[1:])} voxels of {times(spacing)} mm would be {times(new)} of {times(model.spacing)} mm, which "
            f"are more than {MOST_VOXELS:,}: the spacing of the image or of the model is wrong"
        )
    axis = coarse_axis(model.resampling_image, spacing, model.spacing)
    data = np.empty((len(image), *new), np.float32)
    for index, settings in enumerate(model.normalization):
        data[index] = resample(normalize(image[index], inside, settings), new, model.resampling_image.order, axis)
    return PreprocessedImage(data, crop, size, spacing)


def normalize(channel: Array, inside: Array, settings: Normalization) -> Array:
    """Return a channel (z, y, x) normalised by the scheme that the settings name.

    Args:
        channel: intensities.
        inside: (z, y, x), True where any channel is not zero, with holes filled.
        settings: scheme and the intensities it needs.
    """
    return SCHEMES[settings.scheme](channel.astype(np.float32), inside, settings)


def _z_score(channel: Array, inside: Array, settings: Normalization) -> Array:
    part = inside if settings.use_mask else np.ones_like(inside)
    if not part.any():
        return channel
    values = channel[part]
    channel[part] = (values - values.mean()) / max(values.std(), 1e-8)
    return channel


def _ct(channel: Array, _: Array, settings: Normalization) -> Array:
    return (np.clip(channel, settings.percentile_00_5, settings.percentile_99_5) - settings.mean) / max(
        settings.std or 0, 1e-8
    )


def _rescale_to_01(channel: Array, *_) -> Array:
    channel = channel - channel.min()
    return channel / max(channel.max(), 1e-8)


SCHEMES: dict[NormalizationScheme, Callable[[Array, Array, Normalization], Array]] = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "RescaleTo01Normalization": _rescale_to_01,
    "RGBTo01Normalization": lambda channel, *_: channel / 255,
    "NoNormalization": lambda channel, *_: channel,
}
"""nnU-Net's name of a normalisation scheme -> the function that computes it."""
