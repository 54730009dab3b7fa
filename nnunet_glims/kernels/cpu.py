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
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("cpu.c")
OPTIONS = ("-O3", "-march=native", "-fopenmp-simd", "-ffp-contract=fast", "-shared", "-fPIC")


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in "ncdhw"] + [("eps", ctypes.c_float)]


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


def _call(name: str, x: Tensor, tensors: Sequence[Tensor], eps: float) -> None:
    """Run one function of the library on as many threads as torch uses."""
    function = getattr(library(), name)
    shape = _Shape(*x.shape, eps)
    following = ctypes.c_int64(0)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, *tensors)]
    arguments = (ctypes.byref(shape), *pointers, ctypes.byref(following))
    helpers = min(torch.get_num_threads(), x.shape[0] * x.shape[1]) - 1
    started = []
    if helpers > 0:
        pool = _pool(helpers, os.getpid())  # a forked process has no threads of its parent's pool
        started = [pool.submit(function, *arguments) for _ in range(helpers)]
    codes = [function(*arguments), *(future.result() for future in started)]
    if any(codes):
        raise MemoryError(f"not enough memory for {name} on {tuple(x.shape)}")


def branches(x, weight, bias, gain, shift, slope, eps: float) -> Tensor:
    """`formulas.branches`."""
    batch, channels, *size = x.shape
    y = x.new_empty(batch, 3 * channels, *size)
    _call("branches_forward", x, (weight, bias, gain, shift, slope, y), eps)
    return y


def branches_backward(x, weight, bias, gain, shift, slope, gradient, eps: float) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias, gain, shift, slope."""
    batch, channels = x.shape[:2]
    of_x, of_weight = torch.empty_like(x), x.new_empty(batch, *weight.shape)
    others = [x.new_empty(batch, 3, channels) for _ in range(4)]
    _call("branches_backward", x, (weight, bias, gain, shift, slope, gradient, of_x, of_weight, *others), eps)
    of_bias, of_gain, of_shift, of_slope = (other.sum(0) for other in others)
    return of_x, of_weight.sum(0), of_bias, of_gain, of_shift, of_slope.sum(1)


def norm_act(x, gain, shift, slope, eps: float) -> Tensor:
    """`formulas.norm_act`."""
    y = torch.empty_like(x)
    _call("norm_act_forward", x, (gain, shift, slope, y), eps)
    return y


def norm_act_backward(x, gain, shift, slope, gradient, eps: float) -> tuple[Tensor, ...]:
    """Gradients of x, gain, shift, slope."""
    of_x = torch.empty_like(x)
    others = [x.new_empty(x.shape[:2]) for _ in range(3)]
    _call("norm_act_backward", x, (gain, shift, slope, gradient, of_x, *others), eps)
    of_gain, of_shift, of_slope = (other.sum(0) for other in others)
    return of_x, of_gain, of_shift, of_slope.sum(0, keepdim=True)
