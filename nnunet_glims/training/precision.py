"""The precision networks compute in: chosen by name, or by what the device does fast and well."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
_HAS_BF16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
_GPU_PRECISION: Precision = "bf16" if _HAS_BF16 else "fp16"

CHANGED_VOXELS = 1e-3
"""Share of a patch's voxels that bf16 may label otherwise than fp32, where it is chosen by itself."""


def autocast(device_type: str, precision: Precision | None) -> AbstractContextManager:
    """The autocast region a network runs in; None leaves the caller's as it is."""
    if precision is None or not torch.amp.is_autocast_available(device_type):  # the meta device has none
        return nullcontext()
    if precision == "auto":
        precision = _GPU_PRECISION if device_type == "cuda" else "fp32"
    if precision == "fp32":
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype=_REDUCED[precision])


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def labels_alike(exact: Tensor, found: Tensor) -> bool:
    """Whether logits (N, C, D, H, W) computed in two precisions label the same voxels but for `CHANGED_VOXELS`.

    Compared both ways that nnU-Net makes labels: by the largest logit, and by the sign of each (regions).
    """
    changed = exact.argmax(1) != found.argmax(1), (exact > 0) != (found > 0)
    return max(voxels.float().mean().item() for voxels in changed) <= CHANGED_VOXELS
