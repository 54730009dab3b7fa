"""The precision that networks compute in. Recipe, network, trainer, memory count and doctor all ask here.

A setting is `auto`, `fp32`, `bf16` or `fp16`. On a type of device, `auto` becomes one of the other three.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal, cast, get_args

import torch

from nnunet_glims.errors import UsageError
from nnunet_glims.training.recipes import PRECISION_VARIABLE, PrecisionSetting

Precision = Literal["fp32", "bf16", "fp16"]
_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def chosen(planned: PrecisionSetting) -> PrecisionSetting:
    """The setting that holds: that of the environment variable where it is set, else the one in the plans.

    Raises:
        UsageError: the variable has another value than the four settings.
    """
    setting = os.environ.get(PRECISION_VARIABLE) or planned
    _check(setting, f"{PRECISION_VARIABLE}={setting}")
    return cast(PrecisionSetting, setting)


@torch.compiler.assume_constant_result
def resolve(setting: PrecisionSetting, device_type: str) -> Precision:
    """The precision that a setting means on a type of device.

    `auto` is float32 on CPUs, so that results do not depend on the processor; on CUDA devices it is bf16 where they compute
    it in hardware, else fp16. CUDA is asked about its hardware only here, when such a device is to be used.

    Raises:
        UsageError: there is no such setting.
    """
    _check(setting, f"precision {setting!r}")
    if setting != "auto":
        return setting
    if device_type != "cuda":
        return "fp32"
    return "bf16" if _gpu_computes_bf16() else "fp16"


def autocast(device_type: str, setting: PrecisionSetting | None) -> AbstractContextManager:
    """The autocast region in which a network computes; None leaves the caller's region as it is."""
    if setting is None or not torch.amp.is_autocast_available(device_type):  # the meta device has none
        return nullcontext()
    precision = resolve(setting, device_type)
    if precision == "fp32":
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype=_REDUCED[precision])


def describe(setting: PrecisionSetting, device_type: str) -> str:
    """What is computed in and what decided it, as one phrase for logs, such as `fp32 on cpu (auto)`."""
    text = f"{resolve(setting, device_type)} on {device_type}"
    if os.environ.get(PRECISION_VARIABLE) == setting:
        return f"{text} ({PRECISION_VARIABLE}={setting})"
    return f"{text} (auto)" if setting == "auto" else text


@cache
def _gpu_computes_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _check(setting: str, what: str) -> None:
    choices = get_args(PrecisionSetting)
    if setting not in choices:
        raise UsageError(f"{what} is unknown: choose {', '.join(choices[:-1])} or {choices[-1]}")
