"""Access to the Triton kernels: whether they are available, and the plain formulas where they fail."""

from __future__ import annotations

import warnings
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor

from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import formulas

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)

_failed = False


@cache
def _loaded() -> ModuleType | Exception:
    try:
        from nnunet_glims.kernels import triton_kernels
    except Exception as error:  # an incompatible Triton may raise any exception
        return error
    return triton_kernels


def library() -> ModuleType | None:
    """Return the module of the kernels; None where Triton cannot be imported."""
    found = _loaded()
    return None if isinstance(found, Exception) else found


def usable(precision: torch.dtype) -> bool:
    """Return whether there are kernels for this precision.

    Kernels that failed count as available: `_run` then uses the formulas, inside the same operators.
    """
    return precision in PRECISIONS and library() is not None


def require(device: str) -> None:
    """Raise `UsageError` where the Triton kernels, which the user asked for, cannot run on this type of device."""
    wanted = "NNUNET_GLIMS_KERNELS=triton"
    found = _loaded()
    if isinstance(found, Exception):
        raise UsageError(
            f"{wanted}: Triton cannot be imported ({type(found).__name__}: {found}). Install torch with CUDA for Linux, "
            "which brings it, or set auto or eager"
        )
    if device != "cuda" and not found.INTERPRETED:
        raise UsageError(
            f"{wanted}: tensors are on the device {device!r}, Triton's kernels run on CUDA devices. Compute there, set auto "
            "or eager, or set TRITON_INTERPRET=1 before Python starts to have kernels interpreted, for tests"
        )


def _run(name: str, x: Tensor, *arguments: Tensor | float) -> Tensor | tuple[Tensor, ...]:
    global _failed
    if not _failed:
        try:
            with torch.cuda.device_of(x):
                return getattr(library(), name)(x, *arguments)
        except torch.cuda.OutOfMemoryError:
            raise  # the formulas need more memory, not less
        except Exception as error:  # compilers, drivers and launchers have errors of their own
            _failed = True
            reason = f"{type(error).__name__}: {error}".strip()
            warnings.warn(
                f"The Triton kernel {name} failed on {tuple(x.shape)}, {x.dtype}; from here on PyTorch's own operations "
                f"compute the same, more slowly (NNUNET_GLIMS_KERNELS=eager has them do so from the start). {reason[:2000]}",
                RuntimeWarning,
                stacklevel=2,
            )
    with torch.autocast(x.device.type, enabled=False):
        return _by_formula(name, x, *arguments)


def _by_formula(name: str, x: Tensor, *arguments: Tensor | float) -> Tensor | tuple[Tensor, ...]:
    """Compute a formula in the precision of x, as under autocast; gradients get the precision of what they belong to."""
    same = [argument.to(x.dtype) if isinstance(argument, Tensor) else argument for argument in arguments]
    result = getattr(formulas, name)(x, *same)
    if isinstance(result, Tensor):
        return result
    return tuple(gradient.to(given.dtype) for gradient, given in zip(result, (x, *arguments), strict=False))


branches = partial(_run, "branches")
branches_backward = partial(_run, "branches_backward")
norm_act = partial(_run, "norm_act")
norm_act_backward = partial(_run, "norm_act_backward")
