"""Predict the logits of a preprocessed image with nnU-Net's sliding window, without torch and nnU-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np
from scipy.ndimage import gaussian_filter

from nnunet_glims.errors import ProcessingError
from nnunet_glims.export.exported import ExportedModel
from nnunet_glims.images import is_finite, not_finite

Array = np.ndarray
PatchPredictor = Callable[[Array], Array]
"""Takes a patch (1, channels, z, y, x) of the patch size and returns logits (1, outputs, z, y, x), both float32."""


def gaussian(patch_size: Sequence[int], sigma_scale: float, value_scaling: float) -> Array:
    """Return the weights (z, y, x) of a patch's voxels: a Gaussian that is never zero, rounded to float16 as nnU-Net's.

    Args:
        patch_size: voxels.
        sigma_scale: standard deviation as a fraction of the patch size.
        value_scaling: the highest weight.
    """
    weights = np.zeros(patch_size)
    weights[tuple(length // 2 for length in patch_size)] = 1
    weights = gaussian_filter(weights, [length * sigma_scale for length in patch_size], mode="constant")
    weights = (weights * (value_scaling / weights.max())).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32)


def windows(size: Sequence[int], patch_size: Sequence[int], step: float) -> Iterator[tuple[slice, ...]]:
    """Yield evenly spaced windows that cover a volume.

    Args:
        size: size of the volume in voxels, nowhere smaller than the patch.
        patch_size: size of a window in voxels.
        step: largest distance of two neighbouring windows as a fraction of the patch size.
    """
    starts = []
    for length, patch in zip(size, patch_size, strict=True):
        count = int(np.ceil((length - patch) / (patch * step))) + 1
        stride = (length - patch) / max(count - 1, 1)
        starts.append([int(np.round(stride * index)) for index in range(count)])
    for corner in product(*starts):
        yield tuple(slice(start, start + patch) for start, patch in zip(corner, patch_size, strict=True))


def predict_logits(data: Array, networks: Sequence[PatchPredictor], model: ExportedModel, mirror: bool) -> Array:
    """Return the logits (outputs, z, y, x) of a preprocessed image, averaged over windows, mirrored versions and folds.

    Args:
        data: (channels, z, y, x); it is zero-padded where it is smaller than the patch.
        networks: one per fold.
        model: the exported model, whose patch size and window settings are used.
        mirror: whether to average over mirrored versions of each patch as well.

    Raises:
        ProcessingError: the network computes NaN or infinity.
    """
    size, settings = data.shape[1:], model.sliding_window
    missing = [max(patch - length, 0) for length, patch in zip(size, model.patch_size, strict=True)]
    before = [count // 2 for count in missing]
    padded = np.pad(data, [(0, 0), *((low, count - low) for low, count in zip(before, missing, strict=True))])
    weights = gaussian(model.patch_size, settings.gaussian_sigma_scale, settings.gaussian_value_scaling)
    axes = settings.mirror_axes if mirror else ()
    flips = [chosen for count in range(len(axes) + 1) for chosen in combinations([axis + 2 for axis in axes], count)]

    total = np.zeros((model.outputs, *padded.shape[1:]), np.float32)
    total_weight = np.zeros(padded.shape[1:], np.float32)
    for window in windows(padded.shape[1:], model.patch_size, settings.step):
        patch = np.ascontiguousarray(padded[_every_channel(window)][None])
        predictions = [
            np.flip(network(np.ascontiguousarray(np.flip(patch, flip))), flip)[0]
            for network in networks
            for flip in flips
        ]
        total[_every_channel(window)] += weights * (sum(predictions) / len(predictions))
        total_weight[window] += weights
    total /= total_weight
    if not is_finite(total):
        raise ProcessingError(
            f"the network computes {not_finite(total)}: is the image, or the model, what it should be?"
        )
    return total[_every_channel([slice(low, low + length) for low, length in zip(before, size, strict=True)])]


def _every_channel(part: Sequence[slice]) -> tuple[slice, ...]:
    """Return the index into (channels, z, y, x) that belongs to an index into (z, y, x)."""
    return (slice(None), *part)
