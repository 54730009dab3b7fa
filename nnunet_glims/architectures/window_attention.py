"""Swin transformer blocks (arXiv 2103.14030) on volumes, as GLIMS uses them.

They differ from Swin in three points. Windows are clipped along each axis where the volume is smaller; the MLP has a
PReLU; a stage starts with a learned position embedding. Inside a block, features are channels-last (N, D, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import ops
from nnunet_glims.topology import Triple, triple

WINDOW = 7
SHIFT = WINDOW // 2
_APART = -100.0
"""Added to the attention logits of pairs of voxels that must not attend to each other."""


class WindowLayout(NamedTuple):
    """How a volume of a given size is divided into windows of n voxels.

    Attributes:
        window: voxels of a window along D, H, W.
        shift: number of voxels by which the volume is shifted cyclically before it is divided.
        padded: size of the volume after zero padding at the end of each axis.
        bias_index: (n, n), row of the bias table for each query and key.
        mask: (windows, n, n), added to the attention logits; None where all voxels of a window attend to each other.
    """

    window: Triple
    shift: Triple
    padded: Triple
    bias_index: Tensor
    mask: Tensor | None


def cut_into_windows(x: Tensor, window: Triple) -> Tensor:
    """Divide a volume (N, D, H, W, C) into windows: (N, windows, n, C)."""
    batch, depth, height, width, channels = x.shape
    x = x.view(
        batch, depth // window[0], window[0], height // window[1], window[1], width // window[2], window[2], channels
    )
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, window[0] * window[1] * window[2], channels)


def join_windows(windows: Tensor, window: Triple, size: Triple) -> Tensor:
    """Join windows (N, windows, n, C) to a volume (N, D, H, W, C); the inverse of `cut_into_windows`."""
    counts = [length // step for length, step in zip(size, window, strict=True)]
    x = windows.view(windows.shape[0], *counts, *window, windows.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(windows.shape[0], *size, windows.shape[-1])


def _bias_index(window: Triple, released: bool) -> Tensor:
    """Return the row of the bias table for each query and key: (Δd+6)·169 + (Δh+6)·13 + (Δw+6), with Δ = query - key.

    In clipped windows, the released model uses the positions of the first n voxels of a full 7³ window instead of those
    in the clipped window.
    """
    if released:
        voxels = torch.tensor(list(product(range(WINDOW), repeat=3))[: window[0] * window[1] * window[2]])
    else:
        voxels = torch.tensor(list(product(*map(range, window))))
    offset = voxels[:, None] - voxels[None] + WINDOW - 1
    span = 2 * WINDOW - 1
    return (offset[..., 0] * span + offset[..., 1]) * span + offset[..., 2]


def _mask(size: Triple, padded: Triple, window: Triple, shift: Triple, mask_padding: bool) -> Tensor | None:
    """Return the mask of `WindowLayout`: it separates voxels that only the cyclic shift brought together, and padding."""

    def labels(of_axis: Sequence[Tensor]) -> Tensor:
        d, h, w = of_axis
        volume = (d[:, None, None] * 100 + h[:, None]) * 100 + w
        return cut_into_windows(volume[None, ..., None], window)[0, ..., 0]

    regions = []
    for axis in range(3):
        region = torch.zeros(padded[axis], dtype=torch.long)
        if shift[axis]:
            region[padded[axis] - window[axis] : padded[axis] - shift[axis]] = 1
            region[padded[axis] - shift[axis] :] = 2
        regions.append(region)
    region_of = labels(regions)
    mask = torch.where(region_of[:, None, :] != region_of[:, :, None], _APART, 0.0)
    if mask_padding:
        real = [torch.arange(p).roll(-s) < n for n, p, s in zip(size, padded, shift, strict=True)]
        all_real = labels([flags.long() for flags in real]) == 10101
        mask = mask + torch.where(all_real, 0.0, _APART)[:, None, :]
    return mask if bool(mask.any()) else None


@lru_cache(maxsize=64)
def window_layout(size: Triple, shifted: bool, released: bool) -> WindowLayout:
    """Return the layout for a volume of `size` voxels, or with `released` that of the released GLIMS (see `glims`)."""
    window = triple(min(WINDOW, length) for length in size)
    shift = triple(SHIFT if shifted and length > WINDOW else 0 for length in size)
    padded = triple(-(-length // step) * step for length, step in zip(size, window, strict=True))
    with torch.device("cpu"):  # also where the network itself is built on the meta device
        mask = _mask(size, padded, window, shift, mask_padding=not released)
        return WindowLayout(window, shift, padded, _bias_index(window, released), mask)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position of two voxels."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise UsageError(
                f"{dim} features cannot be split over {heads} attention heads: choose another feature_size"
            )
        self.heads = heads
        self.bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 3, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, windows: Tensor, bias_index: Tensor, mask: Tensor | None) -> Tensor:
        """Return the result of attention, (N, windows, n, C), for windows of that shape; see `WindowLayout` for the others."""
        return self.proj(ops.window_attention(self.qkv(windows), self.bias_table, bias_index, mask, self.heads))


class Mlp(nn.Module):
    """Linear layer C -> 4C, PReLU, linear layer 4C -> C."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.act = nn.PReLU()
        self.linear2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.act(self.linear1(x)))


class SwinBlock(nn.Module):
    """A Swin block: x + attention(norm(x)), then x + MLP(norm(x)), for x (N, D, H, W, C)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def attend(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Return window attention of x (N, D, H, W, C): pad, shift, divide into windows, and the way back."""
        size = x.shape[1:4]
        pad = [missing for axis in (2, 1, 0) for missing in (0, layout.padded[axis] - size[axis])]
        x = F.pad(x, (0, 0, *pad))
        rolled = any(layout.shift)
        if rolled:
            x = x.roll([-step for step in layout.shift], (1, 2, 3))
        windows = self.attention(cut_into_windows(x, layout.window), layout.bias_index, layout.mask)
        x = join_windows(windows, layout.window, layout.padded)
        if rolled:
            x = x.roll(layout.shift, (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        x = x + self.attend(self.norm1(x), layout)
        return x + self.mlp(self.norm2(x))


class PositionEmbedding(nn.Module):
    """A learned vector for each voxel, (1, C, D, H, W), interpolated trilinearly for volumes of another size."""

    def __init__(self, dim: int, size: Triple):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, dim, *size))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, D, H, W) plus the embedding."""
        weight = self.weight
        if x.shape[2:] != weight.shape[2:]:
            weight = F.interpolate(weight, size=x.shape[2:], mode="trilinear", align_corners=False)
        return x + weight


class SwinStage(nn.Module):
    """Position embedding, then `depth` Swin blocks, every second one with shifted windows: (N, C, D, H, W) -> the same."""

    def __init__(self, dim: int, size: Triple, depth: int, heads: int, released: bool):
        super().__init__()
        self.released = released
        self.size = size
        self.position = PositionEmbedding(dim, size)
        self.blocks = nn.ModuleList(SwinBlock(dim, heads) for _ in range(depth))
        self.layouts = [window_layout(size, shifted, released) for shifted in (False, True)]
        self.register_buffer("bias_index", self.layouts[0].bias_index, persistent=False)
        self.register_buffer("plain_mask", self.layouts[0].mask, persistent=False)
        self.register_buffer("shifted_mask", self.layouts[1].mask, persistent=False)

    def _layouts_for(self, size: Triple, device: torch.device) -> list[WindowLayout]:
        if size == self.size:
            masks = (self.plain_mask, self.shifted_mask)
            return [
                WindowLayout(layout.window, layout.shift, layout.padded, self.bias_index, mask)
                for layout, mask in zip(self.layouts, masks, strict=True)
            ]
        layouts = [window_layout(size, shifted, self.released) for shifted in (False, True)]
        return [
            layout._replace(
                bias_index=layout.bias_index.to(device), mask=None if layout.mask is None else layout.mask.to(device)
            )
            for layout in layouts
        ]

    def run_blocks(self, x: Tensor) -> Tensor:
        """Apply the blocks without the position embedding, for a stage that fuses a skip connection in between."""
        layouts = self._layouts_for((x.shape[2], x.shape[3], x.shape[4]), x.device)
        x = x.permute(0, 2, 3, 4, 1).contiguous()
        for index, block in enumerate(self.blocks):
            x = block(x, layouts[index % 2])
        return x.permute(0, 4, 1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.run_blocks(self.position(x))


def channel_norm(x: Tensor) -> Tensor:
    """Return the layer norm over the channels of x (N, C, D, H, W), without parameters."""
    return F.layer_norm(x.permute(0, 2, 3, 4, 1), (x.shape[1],)).permute(0, 4, 1, 2, 3)
