"""The operations of the kernels in plain PyTorch, for any device and precision, with derivatives of any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv3d_input, conv3d_weight

DILATIONS = (1, 2, 3)


def instance_norm(x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Return the instance norm of x (N, C, D, H, W), with gain and shift (C) or without.

    It is computed as a group norm with one channel per group, which is faster on CPUs. On CPUs x is made contiguous
    (channels first), because torch's channels-last group norm accumulates a volume in a single float32: at 96³ voxels
    this is wrong by 1e-3, and changes GLIMS' logits by a fifth of their standard deviation.
    """
    if x.device.type == "cpu":
        x = x.contiguous()
    return F.group_norm(x, x.shape[1], gain, shift, eps)


def norm_act(x: Tensor, gain: Tensor | None, shift: Tensor | None, slope: Tensor, eps: float = 1e-5) -> Tensor:
    """Return PReLU(instance norm(x)) for x (N, C, D, H, W).

    Args:
        x: (N, C, D, H, W).
        gain, shift: (C), parameters of the norm; None for a norm without parameters.
        slope: (1), slope of the PReLU.
        eps: added to the variance.
    """
    return F.prelu(instance_norm(x, gain, shift, eps), slope)


def nonoverlapping_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], transposed: bool = False
) -> Tensor:
    """Return a convolution, or transposed convolution, whose kernel size equals its stride, so that nothing overlaps.

    Args:
        x: (N, C, D, H, W).
        weight: (C', C, *stride), or with `transposed` (C, C', *stride).
        bias: (C').
        stride: stride and kernel size along D, H, W; 1 for a 1³ convolution.
        transposed: whether to compute the transposed convolution.

    Returns:
        (N, C', D/s, H/s, W/s), or with `transposed` (N, C', D·s, H·s, W·s).
    """
    convolution = F.conv_transpose3d if transposed else F.conv3d
    return convolution(x, weight, bias, stride=tuple(stride))


def gate_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """Return the zero-padded 7³ convolution of a spatial gate, (N, 1, D, H, W), of x (N, C, D, H, W).

    The weight is (1, C, 7, 7, 7); there is no bias.
    """
    return F.conv3d(x, weight, padding=3)


def window_attention(qkv: Tensor, table: Tensor, index: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Return multi-head self-attention within windows with a relative position bias: (N, windows, n, C).

    Args:
        qkv: (N, windows, n, 3C): queries, keys and values, one after the other, each with all heads.
        table: (offsets, heads), the bias of each relative position.
        index: (n, n), row of the table for each query and key.
        mask: (windows, n, n), added to the attention logits; None for no mask.
        heads: number of heads.
    """
    batch, count, voxels, triple = qkv.shape
    q, k, v = qkv.view(batch * count, voxels, 3, heads, triple // (3 * heads)).permute(2, 0, 3, 1, 4).unbind()
    bias = table.t().contiguous()[:, index][None].to(q.dtype)
    if mask is not None:
        bias = (bias + mask[:, None].to(bias.dtype)).repeat(batch, 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out.transpose(1, 2).reshape(batch, count, voxels, triple // 3)


def branches(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, eps: float = 1e-5
) -> Tensor:
    """Return three depthwise 3³ convolutions with dilation 1, 2 and 3, each followed by instance norm and PReLU.

    Args:
        x: (N, C, D, H, W).
        weight: (3, C, 27), the kernel of each dilation and channel.
        bias: (3, C), biases of the convolutions.
        gain, shift: (3, C), parameters of the norms.
        slope: (3), slopes of the PReLUs.
        eps: added to the variances.

    Returns:
        (N, 3C, D, H, W): the results of dilation 1, 2 and 3, one after the other.
    """
    channels = x.shape[1]
    if x.device.type == "cpu":
        # On CPUs, torch's depthwise dilated convolutions are 4 to 5 times faster in this layout.
        x = x.contiguous(memory_format=torch.channels_last_3d)
    outputs = []
    for index, dilation in enumerate(DILATIONS):
        kernel = weight[index].view(channels, 1, 3, 3, 3)
        y = F.conv3d(x, kernel, bias[index], padding=dilation, dilation=dilation, groups=channels)
        outputs.append(norm_act(y, gain[index], shift[index], slope[index : index + 1], eps))
    return torch.cat(outputs, dim=1)


def norm_act_backward(
    x: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, gradient: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, gain, shift and slope of `norm_act`, for use inside custom operators, without autograd."""
    volume = (2, 3, 4)
    g, gains, shifts = gradient.float(), gain.float().view(1, -1, 1, 1, 1), shift.float().view(1, -1, 1, 1, 1)
    variance, mean = torch.var_mean(x.float(), volume, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    z = (x.float() - mean) * scale
    u = z * gains + shifts
    inner = torch.where(u > 0, g, slope.float() * g)
    of_x = scale * gains * (inner - inner.mean(volume, keepdim=True) - z * (inner * z).mean(volume, keepdim=True))
    of_slope = torch.where(u > 0, 0, u * g).sum().view(1)
    return of_x.to(x.dtype), (inner * z).sum((0, *volume)), inner.sum((0, *volume)), of_slope


def branches_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor,
    slope: Tensor,
    gradient: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight, bias, gain, shift and slope of `branches`."""
    channels = x.shape[1]
    of_x, of_parameters = torch.zeros_like(x), []
    for index, dilation in enumerate(DILATIONS):
        kernel = weight[index].view(channels, 1, 3, 3, 3)
        how = {"padding": dilation, "dilation": dilation, "groups": channels}
        y = F.conv3d(x, kernel, bias[index], **how)
        of_output = gradient[:, index * channels : (index + 1) * channels]
        of_y, *of_norm = norm_act_backward(y, gain[index], shift[index], slope[index : index + 1], of_output, eps)
        of_x += conv3d_input(x.shape, kernel, of_y, **how)
        of_weight = conv3d_weight(x, kernel.shape, of_y, **how)
        of_parameters.append((of_weight.view(channels, 27), of_y.sum((0, 2, 3, 4)), *of_norm))
    *stacked, of_slope = (torch.stack(of) for of in zip(*of_parameters, strict=True))
    return of_x, *stacked, of_slope.flatten()
