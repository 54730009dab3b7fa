"""The C kernels (cpu.c): compiled for this very processor on first use, kept in the user's cache, called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("cpu.c")
OPTIONS = ("-O3", "-march=native", "-fopenmp-simd", "-ffp-contract=fast", "-shared", "-fPIC")


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in "ncdhw"] + [("eps", ctypes.c_float)]


class _Cells(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("n", "in", "out", "d", "h", "w", "sd", "sh", "sw", "up", "parts")]


def compiler() -> list[str] | None:
    """The C compiler's command: the variable CC, else cc, gcc or clang; None where there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return None


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnunet_glims"


def _processor() -> str:
    """What -march=native depends on; a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None without a C compiler, or where it or the cache folder fails."""
    command = compiler()
    if command is None:
        return None
    key = hashlib.sha256("\n".join([SOURCE.read_text(), *command, *OPTIONS, _processor()]).encode()).hexdigest()[:20]
    built = cache_folder() / f"kernels-{key}.so"
    try:
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=built.parent) as folder:
                fresh = Path(folder, built.name)
                subprocess.run(
                    [*command, *OPTIONS, str(SOURCE), "-o", str(fresh), "-lm"], check=True, capture_output=True
                )
                fresh.replace(built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError):
        return None


KEPT_BYTES_PER_VOXEL = 8192
"""What a training step of GLIMS holds for each voxel of its batch while freed memory is kept; half of it otherwise."""


def keep_freed_memory(training_voxels: int = 0) -> None:
    """Have glibc give freed memory to the next tensor instead of back to the system. Other C libraries are left alone.

    Otherwise each large tensor is made of fresh pages, which the system zeroes one by one; with kernels as fast as these,
    that takes most of a network's time. It costs memory, since what is freed does not always fit what comes next: a
    training step on that many voxels for which half of the machine's memory might not do gives memory back after all. The
    variable NNUNET_GLIMS_KEEP_MEMORY=0 always does.
    """
    wanted = os.environ.get("NNUNET_GLIMS_KEEP_MEMORY") != "0"
    _set_keeping(wanted and training_voxels * KEPT_BYTES_PER_VOXEL <= physical_memory() / 2)


@cache
def physical_memory() -> float:
    """Bytes of the machine; infinite where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


@lru_cache(maxsize=1)
def _set_keeping(keep: bool) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # as in malloc.h, and its defaults below
        mallopt(mmap_max, 0 if keep else 2**16)
        mallopt(trim_threshold, 2**31 - 1 if keep else 2**17)
        mallopt(top_pad, 2**28 if keep else 2**17)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _run(name: str, shape: ctypes.Structure, tasks: int, *tensors: Tensor) -> None:
    """Run one function of the library on as many threads as torch uses."""
    function = getattr(library(), name)
    following = ctypes.c_int64(0)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    arguments = (ctypes.byref(shape), *pointers, ctypes.byref(following))
    helpers = min(torch.get_num_threads(), tasks) - 1
    started = []
    if helpers > 0:
        pool = _pool(helpers, os.getpid())  # a forked process has no threads of its parent's pool
        started = [pool.submit(function, *arguments) for _ in range(helpers)]
    codes = [function(*arguments), *(future.result() for future in started)]
    if any(codes):
        raise MemoryError(f"not enough memory for {name} on {tuple(tensors[0].shape)}")


def _run_by_channel(name: str, eps: float, x: Tensor, *tensors: Tensor) -> None:
    _run(name, _Shape(*x.shape, eps), x.shape[0] * x.shape[1], x, *tensors)


def branches(x, weight, bias, gain, shift, slope, eps: float) -> Tensor:
    """`formulas.branches`."""
    batch, channels, *size = x.shape
    y = x.new_empty(batch, 3 * channels, *size)
    _run_by_channel("branches_forward", eps, x, weight, bias, gain, shift, slope, y)
    return y


def branches_backward(x, weight, bias, gain, shift, slope, gradient, eps: float) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias, gain, shift, slope."""
    batch, channels = x.shape[:2]
    of_x, of_weight = torch.empty_like(x), x.new_empty(batch, *weight.shape)
    others = [x.new_empty(batch, 3, channels) for _ in range(3)]
    _run_by_channel("branches_backward", eps, x, weight, bias, gain, shift, slope, gradient, of_x, of_weight, *others)
    of_gain, of_shift, of_slope = (other.sum(0) for other in others)
    return of_x, of_weight.sum(0), torch.zeros_like(bias), of_gain, of_shift, of_slope.sum(1)


def norm_act(x, gain, shift, slope, eps: float) -> Tensor:
    """`formulas.norm_act`."""
    y = torch.empty_like(x)
    _run_by_channel("norm_act_forward", eps, x, gain, shift, slope, y)
    return y


def norm_act_backward(x, gain, shift, slope, gradient, eps: float) -> tuple[Tensor, ...]:
    """Gradients of x, gain, shift, slope."""
    of_x = torch.empty_like(x)
    others = [x.new_empty(x.shape[:2]) for _ in range(3)]
    _run_by_channel("norm_act_backward", eps, x, gain, shift, slope, gradient, of_x, *others)
    of_gain, of_shift, of_slope = (other.sum(0) for other in others)
    return of_x, of_gain, of_shift, of_slope.sum(0, keepdim=True)


WORTHWHILE_VOXELS = 2**13
WORTHWHILE_ROWS = 2**8
"""Fewer voxels or more channels are left to torch: such products are bound by arithmetic, which its libraries do best."""

PARTS = 64


def _coarse(x: Tensor, stride: Sequence[int], up: bool) -> list[int]:
    return [size if up else size // step for size, step in zip(x.shape[2:], stride, strict=True)]


def cells_worthwhile(x: Tensor, weight: Tensor, stride: Sequence[int], up: bool) -> bool:
    """Whether `cells` beats torch's convolution here."""
    divisible = up or not any(size % step for size, step in zip(x.shape[2:], stride, strict=True))
    return divisible and prod(_coarse(x, stride, up)) >= WORTHWHILE_VOXELS and max(weight.shape[:2]) <= WORTHWHILE_ROWS


def _cells_shape(x: Tensor, out: int, stride: Sequence[int], up: bool) -> _Cells:
    coarse = _coarse(x, stride, up)
    parts = max(1, min(PARTS, prod(coarse) // WORTHWHILE_VOXELS))
    return _Cells(x.shape[0], x.shape[1], out, *coarse, *stride, up, parts)


def _matrix(weight: Tensor, up: bool) -> Tensor:
    """torch's weight as (rows of the result, rows of the input)."""
    return weight.flatten(1).T if up else weight.flatten(1)


def cells(x, weight, bias, stride: Sequence[int], up: bool) -> Tensor:
    """`formulas.cells`."""
    out = len(bias)
    shape = _cells_shape(x, out, stride, up)
    size = [axis * step if up else axis // step for axis, step in zip(x.shape[2:], stride, strict=True)]
    y = x.new_empty(x.shape[0], out, *size)
    biases = bias.repeat_interleave(prod(stride)) if up else bias
    _run("cells_forward", shape, shape.n * shape.parts, x, _matrix(weight, up).contiguous(), biases.contiguous(), y)
    return y


def cells_backward(x, weight, gradient, stride: Sequence[int], up: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias."""
    shape = _cells_shape(x, gradient.shape[1], stride, up)
    matrix, of_x = _matrix(weight, up), torch.empty_like(x)
    of_matrix = x.new_zeros(shape.n * shape.parts, *matrix.shape, dtype=torch.float64)
    of_bias = x.new_zeros(shape.n * shape.parts, len(matrix), dtype=torch.float64)
    transposed = matrix.T.contiguous()
    _run("cells_backward", shape, shape.n * shape.parts, x, transposed, gradient, of_x, of_matrix, of_bias)
    of_weight = of_matrix.sum(0).T if up else of_matrix.sum(0)
    of_bias = of_bias.sum(0).view(gradient.shape[1], -1).sum(1)
    return of_x, of_weight.reshape(weight.shape).to(x.dtype), of_bias.to(x.dtype)


def _padded(x: Tensor) -> Tensor:
    shape = _Shape(*x.shape, 0)
    kernels = library()
    assert kernels is not None
    kernels.padded_floats.restype = ctypes.c_int64
    volumes = x.new_zeros(x.shape[0], x.shape[1], kernels.padded_floats(ctypes.byref(shape)))
    _run("pad_volumes", shape, x.shape[0] * x.shape[1], x, volumes)
    return volumes


def _wide(volumes: Tensor, size: Sequence[int], weight: Tensor) -> Tensor:
    batch, maps = volumes.shape[:2]
    y = volumes.new_empty(batch, 1, *size)
    _run("wide_forward", _Shape(batch, maps, *size, 0), batch * size[0], volumes, weight, y)
    return y


def wide(x, weight) -> Tensor:
    """`formulas.wide`."""
    return _wide(_padded(x), x.shape[2:], weight)


def wide_backward(x, weight, gradient) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    batch, maps, *size = x.shape
    gradients, mirrored = _padded(gradient), weight.flip(2, 3, 4)
    of_x = [_wide(gradients, size, mirrored[:, index].contiguous()) for index in range(maps)]
    of_weight = x.new_empty(batch, size[0], *weight.shape)
    _run("wide_weight_gradient", _Shape(*x.shape, 0), batch * size[0], _padded(x), gradients, of_weight)
    return torch.cat(of_x, dim=1), of_weight.sum((0, 1))
