"""Layers that GLIMS is built from: convolution, instance norm and PReLU, and recomputation in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_glims.kernels import formulas, ops


class InstanceNorm(nn.Module):
    """Instance norm with a gain (`weight`) and a bias for each channel: (N, C, D, H, W) -> the same shape."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return formulas.instance_norm(x, self.weight, self.bias, self.eps)


class Recomputing(nn.Module):
    """A module that can recompute its activations in the backward pass instead of keeping them.

    Subclasses implement `compute`.

    Attributes:
        recompute: whether only the inputs are kept for the backward pass.
        worthwhile: number of values of the first input below which activations are always kept, because they need
            little memory.
    """

    recompute = False
    worthwhile = 2**21

    def compute(self, *inputs: Tensor) -> Any:
        """Compute the module's outputs."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> Any:
        if self.recompute and torch.is_grad_enabled() and inputs[0].numel() >= self.worthwhile:
            return checkpoint(self.compute, *inputs, use_reentrant=False, preserve_rng_state=False)
        return self.compute(*inputs)


class NonoverlappingConv3d(nn.Conv3d):
    """Convolution with bias whose kernel size equals its stride, 1³ by default."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int] = (1, 1, 1)):
        super().__init__(in_channels, out_channels, kernel_size=tuple(stride), stride=tuple(stride))

    def forward(self, x: Tensor) -> Tensor:
        return ops.nonoverlapping_convolution(x, self.weight, self.bias, self.stride)


class NonoverlappingConvTranspose3d(nn.ConvTranspose3d):
    """Transposed convolution with bias whose kernel size equals its stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]):
        super().__init__(in_channels, out_channels, kernel_size=tuple(stride), stride=tuple(stride))

    def forward(self, x: Tensor) -> Tensor:
        return ops.nonoverlapping_convolution(x, self.weight, self.bias, self.stride, transposed=True)


class ConvNormAct(nn.Module):
    """Convolution with bias whose kernel size equals its stride, instance norm without parameters, PReLU with one slope."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: Sequence[int] = (1, 1, 1), transposed: bool = False
    ):
        super().__init__()
        self.conv = (NonoverlappingConvTranspose3d if transposed else NonoverlappingConv3d)(
            in_channels, out_channels, stride
        )
        self.act = nn.PReLU()
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        if ops.can_fuse(x, self.act.weight):
            weight, bias, slope = self.parameters()
            return ops.convolution_norm_act(x, weight, bias, slope, self.conv.stride, self.transposed)
        return ops.norm_act(self.conv(x), self.act.weight)
