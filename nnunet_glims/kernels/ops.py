"""The operations as torch sees them: custom operators with gradients, so that autograd, DDP and torch.compile know them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import cpu, formulas

SETTINGS = ("auto", "eager")


_meta_stands_for = "meta"


@contextmanager
def meta_stands_for(device: str) -> Iterator[None]:
    """Treat tensors without content as on this type of device, to count what would be kept there."""
    global _meta_stands_for
    before, _meta_stands_for = _meta_stands_for, device
    try:
        yield
    finally:
        _meta_stands_for = before


@contextmanager
def plain_operators() -> Iterator[None]:
    """Have GLIMS computed from PyTorch's own operators, which exporters and hooks know, instead of our C kernels."""
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


@torch.compiler.assume_constant_result
def _accelerated(device: str, dtype: torch.dtype) -> bool:
    """Whether there are kernels for such tensors here."""
    device = _meta_stands_for if device == "meta" else device
    setting = os.environ.get("NNUNET_GLIMS_KERNELS", "auto")
    if setting not in SETTINGS:
        raise UsageError(f"NNUNET_GLIMS_KERNELS={setting!r} is unknown: set {' or '.join(SETTINGS)}")
    return setting == "auto" and device == "cpu" and dtype == torch.float32 and cpu.library() is not None


def branches(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
    """See `formulas.branches`."""
    operation = _branches if _accelerated(x.device.type, x.dtype) else formulas.branches
    return operation(x, weight, bias, gain, shift, slope, 1e-5)


def norm_act(x: Tensor, slope: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """See `formulas.norm_act`."""
    if not _accelerated(x.device.type, x.dtype):
        return formulas.norm_act(x, gain, shift, slope)
    if gain is None or shift is None:
        gain, shift = x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])
    return _norm_act(x, gain, shift, slope, 1e-5)


@torch.library.custom_op("nnunet_glims::branches", mutates_args=())
def _branches(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, eps: float
) -> Tensor:
    return cpu.branches(x.contiguous(), weight, bias, gain, shift, slope, eps)


@torch.library.custom_op("nnunet_glims::branches_backward", mutates_args=())
def _branches_backward(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, gradient: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return cpu.branches_backward(x.contiguous(), weight, bias, gain, shift, slope, gradient.contiguous(), eps)


@torch.library.custom_op("nnunet_glims::norm_act", mutates_args=())
def _norm_act(x: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, eps: float) -> Tensor:
    return cpu.norm_act(x.contiguous(), gain, shift, slope, eps)


@torch.library.custom_op("nnunet_glims::norm_act_backward", mutates_args=())
def _norm_act_backward(
    x: Tensor, gain: Tensor, shift: Tensor, slope: Tensor, gradient: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cpu.norm_act_backward(x.contiguous(), gain, shift, slope, gradient.contiguous(), eps)


@_branches.register_fake
def _(x, weight, *_):
    batch, channels, *size = x.shape
    return x.new_empty(batch, 3 * channels, *size)


@_norm_act.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


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
