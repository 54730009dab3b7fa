"""Check saliency maps: do they depend on the trained weights, and does the network need the voxels they point at?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor

DELETED = 0.05
"""Fraction of an image's voxels that the deletion test masks."""
DRAWS = 3
"""Number of random masks that the deletion test compares with."""


def similarity(first: Tensor, second: Tensor) -> dict[str, float | None]:
    """Return Spearman's rank correlation and the structural similarity (SSIM) of two maps.

    Args:
        first, second: (z, y, x) with values from 0 to 1.

    Returns:
        "rank_correlation" and "ssim"; both None where one of the maps is constant.
    """
    one, other = first.numpy().astype(np.float64), second.numpy().astype(np.float64)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return {"rank_correlation": None, "ssim": None}
    side = min(7, *(length - 1 + length % 2 for length in one.shape))  # odd, and at most scikit-image's default
    return {
        "rank_correlation": float(spearmanr(one.ravel(), other.ravel()).statistic),
        "ssim": float(structural_similarity(one, other, win_size=side, data_range=1.0)),
    }


def deletion(
    data: Tensor, saliency: Tensor, region: Tensor, logits: Tensor, predict: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Return how much a region's mean logit drops when the most salient voxels are masked, and when random voxels are.

    Masked voxels get the mean of their channel. The random masks are the salient one shifted to random places, because
    isolated voxels would disturb convolutions more than connected ones.

    Args:
        data: (channels, z, y, x), preprocessed.
        saliency: (z, y, x), the map to check.
        region: (z, y, x), above 0 where the region is predicted.
        logits: (z, y, x), the region's logits of `data`.
        predict: computes the region's logits (z, y, x) of data such as `data`.

    Returns:
        "voxels": number of masked voxels; the mean logit over the region of the unchanged data ("logit"), with the most
        salient voxels masked ("most_salient_masked"), and with random ones masked, averaged over `DRAWS` masks
        ("random_masked").
    """
    count = max(1, round(DELETED * saliency.numel()))
    salient = torch.zeros(saliency.numel(), dtype=torch.bool)
    salient[saliency.flatten().argsort(descending=True, stable=True)[:count]] = True
    salient = salient.view(saliency.shape)
    rng = np.random.default_rng(0)

    mean = data.flatten(1).mean(1)[:, None, None, None]

    def masked(mask: Tensor) -> float:
        return float(predict(torch.where(mask, mean, data))[region > 0].mean())

    moved = [
        torch.roll(salient, [int(rng.integers(length)) for length in salient.shape], (0, 1, 2)) for _ in range(DRAWS)
    ]
    return {
        "voxels": count,
        "logit": float(logits[region > 0].mean()),
        "most_salient_masked": masked(salient),
        "random_masked": float(np.mean([masked(mask) for mask in moved])),
    }
