"""The operations as networks call them: custom operators with gradients, which autograd, DDP and torch.compile know."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import compiled, cpu, formulas, gpu

SETTINGS = ("auto", "eager", "triton")


_meta_stands_for: tuple[str, bool | None] = ("meta", None)


@contextmanager
def meta_stands_for(device: str, kernels: bool | None = None) -> Iterator[None]:
    """Within this context, treat tensors on the meta device as if they were on another one, to estimate memory.

    Args:
        device: type of the device, such as "cuda".
        kernels: whether that device has kernels; None for what this machine has.
    """
    global _meta_stands_for
    before, _meta_stands_for = _meta_stands_for, (device, kernels)
    try:
        yield
    finally:
        _meta_stands_for = before


@contextmanager
def plain_operators() -> Iterator[None]:
    """Within this context, use PyTorch's own operators, which exporters and hooks know, instead of the kernels."""
    name = "NNUNET_GLIMS_KERNELS"
    before = os.environ.get(name)
    os.environ[name] = "eager"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _setting() -> str:
    setting = os.environ.get("NNUNET_GLIMS_KERNELS", "auto")
    if setting not in SETTINGS:
        raise UsageError(
            f"NNUNET_GLIMS_KERNELS={setting!r} is unknown: set {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]}"
        )
    return setting


@torch.compiler.assume_constant_result
def _kernels(device: str, precision: torch.dtype, gradients: bool) -> Literal["c", "triton"] | None:
    """Return which kernels there are for such tensors: "c", "triton" or None. Those in C have gradients in float32 only."""
    setting = _setting()
    if setting == "triton" and device != "meta":
        gpu.require(device)
        return "triton" if gpu.usable(precision) else None
    device, wanted = _meta_stands_for if device == "meta" else (device, None)
    if wanted is None and setting == "auto":
        if device == "cuda":
            wanted = gpu.usable(precision)
        elif device == "cpu" and (precision == torch.float32 or not gradients):
            wanted = compiled.library(precision) is not None
    if not wanted:
        return None
    return "triton" if device == "cuda" else "c"


def _module(x: Tensor) -> ModuleType:
    """Return the module that runs an operator on x."""
    return gpu if x.is_cuda or _setting() == "triton" else cpu


def _precision(x: Tensor) -> torch.dtype:
    """Return the precision that x is computed in: under autocast that of convolutions. Parameters keep theirs.

    On CPUs, float32 tensors that need gradients stay float32, because only float32 has kernels with gradients.
    """
    device = x.device.type
    if x.dtype != torch.float32 or x.is_meta or not torch.is_autocast_enabled(device):
        return x.dtype
    reduced = torch.get_autocast_dtype(device)
    return reduced if device != "cpu" or _kernels(device, reduced, torch.is_grad_enabled()) else x.dtype


def _kernels_for(x: Tensor, parameter: Tensor) -> Literal["c", "triton"] | None:
    found = _kernels(x.device.type, _precision(x), torch.is_grad_enabled())
    return None if found == "c" and parameter.dtype != torch.float32 else found


def branches(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
    """See `formulas.branches`."""
    if _kernels_for(x, weight) is None:
        return formulas.branches(x, weight, bias, gain, shift, slope)
    return _branches(x.to(_precision(x)), weight, bias, gain, shift, slope, cpu.EPS)


def norm_act(x: Tensor, slope: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """See `formulas.norm_act`."""
    if _kernels_for(x, slope) is None:
        return formulas.norm_act(x, gain, shift, slope)
    if gain is None or shift is None:
        gain, shift = slope.new_ones(x.shape[1]), slope.new_zeros(x.shape[1])
    return _norm_act(x.to(_precision(x)), gain, shift, slope, cpu.EPS)


def nonoverlapping_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], transposed: bool = False
) -> Tensor:
    """See `formulas.nonoverlapping_convolution`."""
    if _kernels_for(x, weight) == "c" and cpu.convolution_worthwhile(x, weight, stride, transposed):
        return _nonoverlapping_convolution(x.to(_precision(x)), weight, bias, list(stride), transposed)
    return formulas.nonoverlapping_convolution(x, weight, bias, stride, transposed)


def can_fuse(x: Tensor, parameter: Tensor) -> bool:
    """Return whether operations on x can be fused: there are C kernels for such parameters, and no gradients are needed.

    Otherwise the operations are called one by one, so that autograd and hooks see each of them.
    """
    return not torch.is_grad_enabled() and _kernels_for(x, parameter) == "c"


def convolution_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, stride: Sequence[int], transposed: bool = False
) -> Tensor:
    """Return `norm_act`, without gain and shift, of `nonoverlapping_convolution`. `can_fuse` must hold for x."""
    if not cpu.convolution_worthwhile(x, weight, stride, transposed):
        return norm_act(nonoverlapping_convolution(x, weight, bias, stride, transposed), slope)
    return _convolution_norm_act(x.to(_precision(x)), weight, bias, slope, list(stride), transposed)


def dilated_aggregation(
    x: Tensor, branch_parameters: Iterable[Tensor], expand: Iterable[Tensor], reduce: Iterable[Tensor], slope: Tensor
) -> Tensor:
    """Return what a `DilatedAggregator` computes, (N, C, D, H, W). `can_fuse` must hold for x.

    Args:
        x: (N, C, D, H, W).
        branch_parameters: weight, bias, gain, shift and slope of `branches`.
        expand, reduce: weight, bias and slope of the two 1³ convolutions with norm and PReLU that follow.
        slope: (1), slope of the last PReLU, which follows the addition of x and a norm.
    """
    weight, bias, gain, shift, branch_slope = branch_parameters
    (expand_weight, expand_bias, expand_slope) = expand
    (reduce_weight, reduce_bias, reduce_slope) = reduce
    if all(cpu.convolution_worthwhile(x, matrix, (1, 1, 1), False) for matrix in (expand_weight, reduce_weight)):
        slopes = torch.cat([branch_slope, expand_slope, reduce_slope, slope])
        x = x.to(_precision(x))
        return _dilated_aggregation(
            x, weight, bias, gain, shift, slopes, expand_weight, expand_bias, reduce_weight, reduce_bias
        )
    y = branches(x, weight, bias, gain, shift, branch_slope)
    y = convolution_norm_act(y, expand_weight, expand_bias, expand_slope, (1, 1, 1))
    return norm_act(x + convolution_norm_act(y, reduce_weight, reduce_bias, reduce_slope, (1, 1, 1)), slope)


def gate_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """See `formulas.gate_convolution`."""
    if _kernels_for(x, weight) == "c":
        return _gate_convolution(x.to(_precision(x)), weight)
    return formulas.gate_convolution(x, weight)


def window_attention(qkv: Tensor, table: Tensor, index: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """See `formulas.window_attention`. Attention logits and softmax are float32 or float64, also under autocast."""
    if can_fuse(qkv, table):
        return _window_attention(qkv, table, index, mask, heads)
    if qkv.dtype not in (torch.float16, torch.bfloat16):
        return formulas.window_attention(qkv, table, index, mask, heads)
    device = qkv.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return formulas.window_attention(qkv.float(), table, index, mask, heads)


@torch.library.custom_op("nnunet_glims::branches", mutates_args=())
def _branches(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, eps: float
) -> Tensor:
    return _module(x).branches(x.contiguous(), weight, bias, gain, shift, slope, eps)


@torch.library.custom_op("nnunet_glims::branches_backward", mutates_args=())
def _branches_backward(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, gradient: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _module(x).branches_backward(x.contiguous(), weight, bias, gain, shift, slope, gradient.contiguous(), eps)


@torch.library.custom_op("nnunet_glims::norm_act", mutates_args=())
def _norm_act(x: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, eps: float) -> Tensor:
    return _module(x).norm_act(x.contiguous(), gain, shift, slope, eps)


@torch.library.custom_op("nnunet_glims::norm_act_backward", mutates_args=())
def _norm_act_backward(
    x: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, gradient: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _module(x).norm_act_backward(x.contiguous(), gain, shift, slope, gradient.contiguous(), eps)


@torch.library.custom_op("nnunet_glims::nonoverlapping_convolution", mutates_args=())
def _nonoverlapping_convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], transposed: bool) -> Tensor:
    return cpu.nonoverlapping_convolution(x.contiguous(), weight, bias, stride, transposed)


@torch.library.custom_op("nnunet_glims::nonoverlapping_convolution_backward", mutates_args=())
def _nonoverlapping_convolution_backward(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: list[int], transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.nonoverlapping_convolution_backward(x.contiguous(), weight, gradient.contiguous(), stride, transposed)


@torch.library.custom_op("nnunet_glims::convolution_norm_act", mutates_args=())
def _convolution_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, stride: list[int], transposed: bool
) -> Tensor:
    return cpu.convolution_norm_act(x.contiguous(), weight, bias, slope, stride, transposed)


@torch.library.custom_op("nnunet_glims::dilated_aggregation", mutates_args=())
def _dilated_aggregation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor,
    slopes: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
) -> Tensor:
    return cpu.dilated_aggregation(
        x.contiguous(), weight, bias, gain, shift, slopes, expand, expand_bias, reduce, reduce_bias
    )


@torch.library.custom_op("nnunet_glims::gate_convolution", mutates_args=())
def _gate_convolution(x: Tensor, weight: Tensor) -> Tensor:
    return cpu.gate_convolution(x.contiguous(), weight.contiguous())


@torch.library.custom_op("nnunet_glims::gate_convolution_backward", mutates_args=())
def _gate_convolution_backward(x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return cpu.gate_convolution_backward(x.contiguous(), weight, gradient.contiguous())


@torch.library.custom_op("nnunet_glims::window_attention", mutates_args=())
def _window_attention(qkv: Tensor, table: Tensor, index: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    return cpu.window_attention(qkv.contiguous(), table, index, mask, heads)


@_branches.register_fake
def _(x, weight, *_):
    batch, channels, *size = x.shape
    return x.new_empty(batch, 3 * channels, *size)


@_norm_act.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


@_nonoverlapping_convolution.register_fake
def _(x, weight, bias, stride, transposed):
    return cpu.new_convolution_output(x, bias, stride, transposed)


@_convolution_norm_act.register_fake
def _(x, weight, bias, slope, stride, transposed):
    return cpu.new_convolution_output(x, bias, stride, transposed)


@_dilated_aggregation.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


@_nonoverlapping_convolution_backward.register_fake
def _(x, weight, gradient, stride, transposed):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(gradient.shape[1])


@_window_attention.register_fake
def _(qkv, *_):
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


@_gate_convolution.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], 1, *x.shape[2:])


@_gate_convolution_backward.register_fake
def _(x, weight, gradient):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@_branches_backward.register_fake
def _(x, weight, bias, gain, shift, slope, gradient, eps):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, weight, bias, gain, shift, slope))


@_norm_act_backward.register_fake
def _(x, gain, shift, slope, gradient, eps):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, gain, shift, slope))


def _save(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


_branches.register_autograd(
    lambda ctx, gradient: (*_branches_backward(*ctx.saved_tensors, gradient, ctx.eps), None), setup_context=_save
)
_norm_act.register_autograd(
    lambda ctx, gradient: (*_norm_act_backward(*ctx.saved_tensors, gradient, ctx.eps), None), setup_context=_save
)


def _save_convolution(ctx, inputs, output):
    x, weight, _, ctx.stride, ctx.transposed = inputs
    ctx.save_for_backward(x, weight)


_nonoverlapping_convolution.register_autograd(
    lambda ctx, gradient: (
        *_nonoverlapping_convolution_backward(*ctx.saved_tensors, gradient, ctx.stride, ctx.transposed),
        None,
        None,
    ),
    setup_context=_save_convolution,
)
_gate_convolution.register_autograd(
    lambda ctx, gradient: _gate_convolution_backward(*ctx.saved_tensors, gradient),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
