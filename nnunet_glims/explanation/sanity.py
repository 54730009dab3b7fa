"""Whether maps deserve trust: do they depend on what was learnt, and does the network need what they point at?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor

DELETED = 0.05
"""Part of an image's voxels that the deletion test masks."""
DRAWS = 3
"""Random masks that it compares with."""


def similarity(first: Tensor, second: Tensor) -> dict[str, float | None]:
    """Spearman's rank correlation and SSIM of two maps of values from 0 to 1; None where one is the same everywhere."""
    one, other = first.numpy().astype(np.float64), second.numpy().astype(np.float64)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return {"rank_correlation": None, "ssim": None}
    side = min(7, *(length - 1 + length % 2 for length in one.shape))  # odd, at most the default
    return {
        "rank_correlation": float(spearmanr(one.ravel(), other.ravel()).statistic),
        "ssim": float(structural_similarity(one, other, win_size=side, data_range=1.0)),
    }


def deletion(
    data: Tensor, saliency: Tensor, region: Tensor, logits: Tensor, predict: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """A region's mean logit where it was predicted: of the image, with its most salient voxels masked, with others masked.

    Masked voxels get the mean of their channel. The others are as many voxels in the same pattern, moved to random places,
    so that both masks are in as many pieces: voxels scattered alone disturb convolutions more than any place would.

    Args:
        data: (channels, z, y, x), preprocessed.
        saliency, region, logits: (z, y, x), of `data`.
        predict: from such data to logits.
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
