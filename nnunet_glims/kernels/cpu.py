"""The C kernels (folder c), called through ctypes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_glims.kernels import compiled
from nnunet_glims.processes import available_memory


class _Shape(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in (*"ncdhw", "threads")), ("eps", ctypes.c_float)]


class _ConvolutionShape(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("n", "in", "out", "d", "h", "w", "sd", "sh", "sw", "transposed", "parts", "threads")
        ),
        ("eps", ctypes.c_float),
    ]


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("windows", "heads", "voxels", "width", "masks", "threads")),
        ("scale", ctypes.c_float),
    ]


KEPT_BYTES_PER_VOXEL = 8192
"""Bytes that a training step of GLIMS needs per voxel of its batch when freed memory is kept; otherwise it needs half."""


def keep_freed_memory(training_voxels: int = 0) -> None:
    """Make glibc keep freed memory for the next tensors instead of returning it to the system. Other C libraries do not change.

    By default each large tensor gets new pages, which the system fills with zeros one by one. With fast kernels this takes
    most of a network's time. Keeping memory needs more of it, because freed blocks do not always fit the next tensors. It is
    therefore switched off if a training step may need more than half of the memory that this process may use, and if the
    variable NNUNET_GLIMS_KEEP_MEMORY is 0.

    Args:
        training_voxels: voxels of the batch in a training step; 0 in prediction.
    """
    wanted = os.environ.get("NNUNET_GLIMS_KEEP_MEMORY") != "0"
    _set_keeping(wanted and training_voxels * KEPT_BYTES_PER_VOXEL <= _usable_memory() / 2)


_usable_memory = cache(available_memory)  # used in every step; limits do not change while a process runs


@lru_cache(maxsize=1)
def _set_keeping(keep: bool) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # as in malloc.h, and its defaults below
        mallopt(mmap_max, 0 if keep else 2**16)
        mallopt(trim_threshold, -1 if keep else 2**17)
        mallopt(top_pad, 2**28 if keep else 2**17)


def _run(name: str, precision: torch.dtype, shape: ctypes.Structure, *tensors: Tensor | None) -> None:
    """Call a function of the library for this precision; None is passed as a null pointer.

    Raises:
        MemoryError: the function could not allocate its buffers.
    """
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    if getattr(compiled.library(precision), name)(ctypes.byref(shape), *pointers):
        shapes = [tuple(tensor.shape) for tensor in tensors if tensor is not None]
        raise MemoryError(f"not enough memory for {name} on tensors of {shapes}")


def _shape(size: Sequence[int], eps: float = 0) -> _Shape:
    return _Shape(*size, torch.get_num_threads(), eps)


def _run_by_channel(name: str, eps: float, x: Tensor, *tensors: Tensor | None) -> None:
    _run(name, x.dtype, _shape(x.shape, eps), x, *tensors)


EPS = 1e-5
"""Added to the variance by every instance norm."""


def _norms(x: Tensor, channels: int) -> Tensor:
    """Allocate what the kernels call norms: mean, 1 / standard deviation, gain, shift and slope of each case and channel."""
    return x.new_empty(x.shape[0], channels, 5, dtype=torch.float32)


def _branches(x, weight, bias, gain, shift, slope, eps: float, norms: Tensor | None) -> Tensor:
    batch, channels, *size = x.shape
    y = x.new_empty(batch, 3 * channels, *size)
    _run_by_channel("branches_forward", eps, x, weight, bias, gain, shift, slope, y, norms)
    return y


def branches(x, weight, bias, gain, shift, slope, eps: float) -> Tensor:
    """See `formulas.branches`."""
    return _branches(x, weight, bias, gain, shift, slope, eps, None)


def branches_backward(x, weight, bias, gain, shift, slope, gradient, eps: float) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight, bias, gain, shift and slope of `branches`. The norm makes that of the bias 0."""
    batch, channels = x.shape[:2]
    of_x, of_weight = torch.empty_like(x), x.new_empty(batch, *weight.shape)
    others = [x.new_empty(batch, 3, channels) for _ in range(3)]
    _run_by_channel("branches_backward", eps, x, weight, bias, gain, shift, slope, gradient, of_x, of_weight, *others)
    of_gain, of_shift, of_slope = (other.sum(0) for other in others)
    return of_x, of_weight.sum(0), torch.zeros_like(bias), of_gain, of_shift, of_slope.sum(1)


def norm_act(x, gain, shift, slope, eps: float) -> Tensor:
    """See `formulas.norm_act`."""
    y = torch.empty_like(x)
    _run_by_channel("norm_act_forward", eps, x, gain, shift, slope, y)
    return y


def norm_act_backward(x, gain, shift, slope, gradient, eps: float) -> tuple[Tensor, ...]:
    """Return the gradients of x, gain, shift and slope of `norm_act`."""
    of_x = torch.empty_like(x)
    others = [x.new_empty(x.shape[:2]) for _ in range(3)]
    _run_by_channel("norm_act_backward", eps, x, gain, shift, slope, gradient, of_x, *others)
    of_gain, of_shift, of_slope = (other.sum(0) for other in others)
    return of_x, of_gain, of_shift, of_slope.sum(0, keepdim=True)


WORTHWHILE_VOXELS = 2**13
"""Number of voxels on the coarser side from which `nonoverlapping_convolution` is faster than torch's convolution."""
WORTHWHILE_CHANNELS = 2**8
"""Number of channels up to which it is faster. With more channels arithmetic limits the speed, and torch's is faster."""

PARTS = 64
"""Largest number of parts into which the voxels of a case are divided among threads."""


def _coarse(x: Tensor, stride: Sequence[int], transposed: bool) -> list[int]:
    return [size if transposed else size // step for size, step in zip(x.shape[2:], stride, strict=True)]


def new_convolution_output(x: Tensor, bias: Tensor, stride: Sequence[int], transposed: bool) -> Tensor:
    """Allocate the result of `nonoverlapping_convolution`."""
    size = [axis * step if transposed else axis // step for axis, step in zip(x.shape[2:], stride, strict=True)]
    return x.new_empty(x.shape[0], len(bias), *size)


def convolution_worthwhile(x: Tensor, weight: Tensor, stride: Sequence[int], transposed: bool) -> bool:
    """Return whether `nonoverlapping_convolution` can compute this, and is faster than torch's convolution."""
    divisible = transposed or not any(size % step for size, step in zip(x.shape[2:], stride, strict=True))
    return (
        divisible
        and prod(_coarse(x, stride, transposed)) >= WORTHWHILE_VOXELS
        and max(weight.shape[:2]) <= WORTHWHILE_CHANNELS
    )


def _convolution_shape(x: Tensor, out: int, stride: Sequence[int], transposed: bool) -> _ConvolutionShape:
    coarse = _coarse(x, stride, transposed)
    parts = max(1, min(PARTS, prod(coarse) // WORTHWHILE_VOXELS))
    return _ConvolutionShape(
        x.shape[0], x.shape[1], out, *coarse, *stride, transposed, parts, torch.get_num_threads(), EPS
    )


def _matrix(weight: Tensor, transposed: bool) -> Tensor:
    """Return torch's weight as a matrix (rows of the result, rows of the input)."""
    return weight.flatten(1).T if transposed else weight.flatten(1)


def _nonoverlapping_convolution(
    x, weight, bias, stride: Sequence[int], transposed: bool, norms: Tensor | None, slope: Tensor | None
):
    """Return the convolution of x, and the norms of the result, which are not applied.

    Args:
        norms: norms that are applied to x first, with their PReLU; None for none.
        slope: (1), slope of the PReLU after the result's norms; None returns None instead of norms.
    """
    out = len(bias)
    shape = _convolution_shape(x, out, stride, transposed)
    y = new_convolution_output(x, bias, stride, transposed)
    biases = (bias.repeat_interleave(prod(stride)) if transposed else bias).contiguous()
    moments = None if slope is None else x.new_zeros(x.shape[0], shape.parts, out, 3, dtype=torch.float64)
    matrix = _matrix(weight, transposed).to(x.dtype)
    if x.dtype == torch.bfloat16:  # the kernels take the products of two rows at a time
        matrix = F.pad(matrix, (0, matrix.shape[1] % 2))
    matrix = matrix.contiguous()
    _run("nonoverlapping_forward", x.dtype, shape, x, norms, matrix, biases, y, moments)
    if slope is None:
        return y, None
    following = _norms(x, out)
    _run("norms_from_moments", x.dtype, shape, moments, slope, following)
    return y, following


def nonoverlapping_convolution(x, weight, bias, stride: Sequence[int], transposed: bool) -> Tensor:
    """See `formulas.nonoverlapping_convolution`."""
    return _nonoverlapping_convolution(x, weight, bias, stride, transposed, None, None)[0]


def convolution_norm_act(x, weight, bias, slope, stride: Sequence[int], transposed: bool) -> Tensor:
    """See `ops.convolution_norm_act`."""
    y, norms = _nonoverlapping_convolution(x, weight, bias, stride, transposed, None, slope)
    _run_by_channel("apply_forward", EPS, y, norms)
    return y


def dilated_aggregation(x, weight, bias, gain, shift, slopes, expand, expand_bias, reduce, reduce_bias) -> Tensor:
    """Return what a `DilatedAggregator` computes. Each norm is applied by the operation that reads the values next.

    Args:
        slopes: (6): the slopes of the three branches, of `expand`, of `reduce`, and of the last PReLU.
    """
    norms = _norms(x, 3 * x.shape[1])
    y = _branches(x, weight, bias, gain, shift, slopes, EPS, norms)
    ones = (1, 1, 1)
    y, norms = _nonoverlapping_convolution(y, expand, expand_bias, ones, False, norms, slopes[3:])
    y, norms = _nonoverlapping_convolution(y, reduce, reduce_bias, ones, False, norms, slopes[4:])
    _run_by_channel("residual_forward", EPS, x, y, norms, slopes[5:])
    return y


def nonoverlapping_convolution_backward(
    x, weight, gradient, stride: Sequence[int], transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias of `nonoverlapping_convolution`."""
    shape = _convolution_shape(x, gradient.shape[1], stride, transposed)
    matrix, of_x = _matrix(weight, transposed), torch.empty_like(x)
    of_matrix = x.new_zeros(shape.n * shape.parts, *matrix.shape, dtype=torch.float64)
    of_bias = x.new_zeros(shape.n * shape.parts, len(matrix), dtype=torch.float64)
    backward_matrix = matrix.T.contiguous()
    _run("nonoverlapping_backward", x.dtype, shape, x, backward_matrix, gradient, of_x, of_matrix, of_bias)
    of_weight = of_matrix.sum(0).T if transposed else of_matrix.sum(0)
    of_bias = of_bias.sum(0).view(gradient.shape[1], -1).sum(1)
    return of_x, of_weight.reshape(weight.shape).to(x.dtype), of_bias.to(x.dtype)


def _padded(x: Tensor) -> Tensor:
    """Return the volumes of x (N, C, D, H, W) in float32 with a margin of zeros, in the layout of padded.h."""
    shape = _shape(x.shape)
    kernels = compiled.library(x.dtype)
    assert kernels is not None
    kernels.padded_floats.restype = ctypes.c_int64
    floats = kernels.padded_floats(ctypes.byref(shape))
    volumes = x.new_zeros(x.shape[0], x.shape[1], floats, dtype=torch.float32)
    _run("pad_volumes", x.dtype, shape, x, volumes)
    return volumes


def _gate_convolution(volumes: Tensor, like: Tensor, weight: Tensor) -> Tensor:
    """Return the gate's convolution (N, 1, D, H, W) of volumes from `_padded`, in the precision and size of `like`."""
    batch, maps = volumes.shape[:2]
    y = like.new_empty(batch, 1, *like.shape[2:])
    _run("gate_convolution_forward", y.dtype, _shape((batch, maps, *y.shape[2:])), volumes, weight, y)
    return y


def gate_convolution(x, weight) -> Tensor:
    """See `formulas.gate_convolution`."""
    return _gate_convolution(_padded(x), x, weight)


def gate_convolution_backward(x, weight, gradient) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight of `gate_convolution`."""
    batch, maps, *size = x.shape
    gradients, mirrored = _padded(gradient), weight.flip(2, 3, 4)
    of_x = [_gate_convolution(gradients, gradient, mirrored[:, index].contiguous()) for index in range(maps)]
    of_weight = x.new_empty(batch, size[0], *weight.shape)
    _run("gate_convolution_weight_gradient", x.dtype, _shape(x.shape), _padded(x), gradients, of_weight)
    return torch.cat(of_x, dim=1), of_weight.sum((0, 1))


def window_attention(qkv, table, index, mask: Tensor | None, heads: int) -> Tensor:
    """See `formulas.window_attention`."""
    *windows, voxels, triple = qkv.shape
    width, masks = triple // (3 * heads), 0 if mask is None else len(mask)
    shape = _Attention(prod(windows), heads, voxels, width, masks, torch.get_num_threads(), width**-0.5)
    out = qkv.new_empty(*windows, voxels, heads * width)
    _run("attention_forward", qkv.dtype, shape, qkv, table, index, mask, out)
    return out
