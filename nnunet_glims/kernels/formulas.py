"""What the kernels compute, in plain PyTorch: any device, any precision, any number of derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

DILATIONS = (1, 2, 3)


def instance_norm(x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Instance norm of (N, C, D, H, W), computed as a group norm with a group a channel, which is faster on CPUs.

    Channels-first on purpose: torch's channels-last group norm on CPUs adds up a whole volume in plain float32 and is
    wrong by 1e-3 at 96³, which grows to a fifth of the standard deviation of GLIMS' logits.
    """
    if x.device.type == "cpu":
        x = x.contiguous()
    return F.group_norm(x, x.shape[1], gain, shift, eps)


def norm_act(x: Tensor, gain: Tensor | None, shift: Tensor | None, slope: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm with gain and shift (C) or without, then PReLU with one slope (1): (N, C, D, H, W) -> the same."""
    return F.prelu(instance_norm(x, gain, shift, eps), slope)


def cells(x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], up: bool = False) -> Tensor:
    """Convolution whose kernel is its stride (1³ or cells of the stride), or with `up` its transpose.

    (N, C, D, H, W), weight (C', C, *stride) or with `up` (C, C', *stride), bias (C') -> (N, C', D/s, …) or (N, C', D·s, …).
    """
    convolution = F.conv_transpose3d if up else F.conv3d
    return convolution(x, weight, bias, stride=tuple(stride))


def wide(x: Tensor, weight: Tensor) -> Tensor:
    """Zero-padded 7³ convolution to a single map: (N, C, D, H, W), weight (1, C, 7, 7, 7) -> (N, 1, D, H, W)."""
    return F.conv3d(x, weight, padding=3)


def branches(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, eps: float = 1e-5
) -> Tensor:
    """Depthwise 3³ convolutions with dilation 1, 2 and 3, each with norm and PReLU: (N, C, D, H, W) -> (N, 3C, D, H, W).

    Args:
        x: (N, C, D, H, W).
        weight: (3, C, 27), a kernel for each dilation and channel.
        bias, gain, shift: (3, C), of the convolutions and the norms.
        slope: (3), of the PReLUs.
        eps: added to the norms' variances.
    """
    channels = x.shape[1]
    if x.device.type == "cpu":
        # Depthwise dilated convolutions are 4-5 times faster in this layout on CPUs.
        x = x.contiguous(memory_format=torch.channels_last_3d)
    outputs = []
    for index, dilation in enumerate(DILATIONS):
        kernel = weight[index].view(channels, 1, 3, 3, 3)
        y = F.conv3d(x, kernel, bias[index], padding=dilation, dilation=dilation, groups=channels)
        outputs.append(norm_act(y, gain[index], shift[index], slope[index : index + 1], eps))
    return torch.cat(outputs, dim=1)
