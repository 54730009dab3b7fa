"""The operations as torch sees them: custom operators with gradients, so that autograd, DDP and torch.compile know them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import cpu, formulas, gpu

SETTINGS = ("auto", "eager", "triton")


_meta_stands_for: tuple[str, bool | None] = ("meta", None)


@contextmanager
def meta_stands_for(device: str, kernels: bool | None = None) -> Iterator[None]:
    """Treat tensors without content as on this type of device, to count what would be held there.

    `kernels` says whether that device has kernels; None asks for those of this machine.
    """
    global _meta_stands_for
    before, _meta_stands_for = _meta_stands_for, (device, kernels)
    try:
        yield
    finally:
        _meta_stands_for = before


@contextmanager
def plain_operators() -> Iterator[None]:
    """Have GLIMS computed from PyTorch's own operators, which exporters and hooks know, instead of our kernels."""
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
def _accelerated(device: str, dtype: torch.dtype) -> bool:
    """Whether there are C kernels for such tensors here."""
    device, kernels = _meta_stands_for if device == "meta" else (device, None)
    if kernels is not None:
        return kernels and device == "cpu"
    return _setting() == "auto" and device == "cpu" and dtype == torch.float32 and cpu.library() is not None


@torch.compiler.assume_constant_result
def _on_triton(device: str, dtype: torch.dtype) -> bool:
    """Whether there are Triton kernels for such tensors here."""
    setting = _setting()
    if setting == "triton" and device != "meta":
        gpu.demand(device)
        return gpu.usable(dtype)
    device, kernels = _meta_stands_for if device == "meta" else (device, None)
    if kernels is not None:
        return kernels and device == "cuda"
    return setting != "eager" and device == "cuda" and gpu.usable(dtype)


def _module(x: Tensor) -> ModuleType:
    """The kernels for a tensor, when operators run."""
    return gpu if x.is_cuda or _setting() == "triton" else cpu


def _in_autocast_precision(x: Tensor) -> Tensor:
    """As autocast has convolutions and PReLUs computed on GPUs. Parameters stay as they are."""
    device = x.device.type
    if x.dtype == torch.float32 and not x.is_meta and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def branches(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
    """See `formulas.branches`."""
    if _on_triton(x.device.type, x.dtype):
        x = _in_autocast_precision(x)
    elif not _accelerated(x.device.type, x.dtype):
        return formulas.branches(x, weight, bias, gain, shift, slope)
    return _branches(x, weight, bias, gain, shift, slope, 1e-5)


def norm_act(x: Tensor, slope: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """See `formulas.norm_act`."""
    if _on_triton(x.device.type, x.dtype):
        x = _in_autocast_precision(x)
    elif not _accelerated(x.device.type, x.dtype):
        return formulas.norm_act(x, gain, shift, slope)
    if gain is None or shift is None:
        gain, shift = slope.new_ones(x.shape[1]), slope.new_zeros(x.shape[1])
    return _norm_act(x, gain, shift, slope, 1e-5)


def cells(x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], up: bool = False) -> Tensor:
    """See `formulas.cells`."""
    if _accelerated(x.device.type, x.dtype) and cpu.cells_worthwhile(x, weight, stride, up):
        return _cells(x, weight, bias, list(stride), up)
    return formulas.cells(x, weight, bias, stride, up)


def wide(x: Tensor, weight: Tensor) -> Tensor:
    """See `formulas.wide`."""
    return (_wide if _accelerated(x.device.type, x.dtype) else formulas.wide)(x, weight)


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


@torch.library.custom_op("nnunet_glims::cells", mutates_args=())
def _cells(x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], up: bool) -> Tensor:
    return cpu.cells(x.contiguous(), weight, bias, stride, up)


@torch.library.custom_op("nnunet_glims::cells_backward", mutates_args=())
def _cells_backward(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: list[int], up: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.cells_backward(x.contiguous(), weight, gradient.contiguous(), stride, up)


@torch.library.custom_op("nnunet_glims::wide", mutates_args=())
def _wide(x: Tensor, weight: Tensor) -> Tensor:
    return cpu.wide(x.contiguous(), weight.contiguous())


@torch.library.custom_op("nnunet_glims::wide_backward", mutates_args=())
def _wide_backward(x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return cpu.wide_backward(x.contiguous(), weight, gradient.contiguous())


@_branches.register_fake
def _(x, weight, *_):
    batch, channels, *size = x.shape
    return x.new_empty(batch, 3 * channels, *size)


@_norm_act.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


@_cells.register_fake
def _(x, weight, bias, stride, up):
    return formulas.cells(x, weight, bias, stride, up).contiguous()


@_cells_backward.register_fake
def _(x, weight, gradient, stride, up):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(gradient.shape[1])


@_wide.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], 1, *x.shape[2:])


@_wide_backward.register_fake
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


def _save_cells(ctx, inputs, output):
    x, weight, _, ctx.stride, ctx.up = inputs
    ctx.save_for_backward(x, weight)


_cells.register_autograd(
    lambda ctx, gradient: (*_cells_backward(*ctx.saved_tensors, gradient, ctx.stride, ctx.up), None, None),
    setup_context=_save_cells,
)
_wide.register_autograd(
    lambda ctx, gradient: _wide_backward(*ctx.saved_tensors, gradient),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
