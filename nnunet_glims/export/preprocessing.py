"""From an image to the network's input, as nnU-Net's DefaultPreprocessor computes it, without torch and nnU-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_fill_holes

from nnunet_glims.errors import UsageError
from nnunet_glims.export.exported import ExportedModel, Normalization
from nnunet_glims.export.resampling import coarse_axis, new_size, resample
from nnunet_glims.geometry import bounding_box

Array = np.ndarray


@dataclass(frozen=True)
class PreprocessedImage:
    """A preprocessed image and what it takes to go back.

    Attributes:
        data: (channels, z, y, x), float32, normalised, at the model's spacing.
        crop: where the non-zero part lies in the transposed image.
        size: of the transposed image, voxels.
        spacing: of the transposed image, mm.
    """

    data: Array
    crop: tuple[slice, ...]
    size: tuple[int, ...]
    spacing: tuple[float, ...]


def preprocess(image: Array, spacing: Sequence[float], model: ExportedModel) -> PreprocessedImage:
    """What nnU-Net's DefaultPreprocessor does to an image.

    Args:
        image: (channels, z, y, x).
        spacing: along z, y, x, in mm.
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
        raise UsageError(f"the image has {new} voxels at the model's spacing of {model.spacing} mm: it is too small")
    axis = coarse_axis(model.resampling_image, spacing, model.spacing)
    data = np.empty((len(image), *new), np.float32)
    for index, settings in enumerate(model.normalization):
        data[index] = resample(normalize(image[index], inside, settings), new, model.resampling_image.order, axis)
    return PreprocessedImage(data, crop, size, spacing)


def normalize(channel: Array, inside: Array, settings: Normalization) -> Array:
    """One channel, normalised with one of nnU-Net's schemes, the names of which are the keys of `SCHEMES`."""
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


SCHEMES: dict[str, Callable[[Array, Array, Normalization], Array]] = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "RescaleTo01Normalization": _rescale_to_01,
    "RGBTo01Normalization": lambda channel, *_: channel / 255,
    "NoNormalization": lambda channel, *_: channel,
}
