"""The precision in which networks compute. Networks, trainers, the memory count and doctor use this module.

A setting is `auto`, `fp32`, `bf16` or `fp16`. What `auto` means depends on the type of device.
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
    """Return the setting in effect: that of the environment variable NNUNET_GLIMS_PRECISION if it is set, else `planned`.

    Raises:
        UsageError: the variable is set to something other than the four settings.
    """
    setting = os.environ.get(PRECISION_VARIABLE) or planned
    _check(setting, f"{PRECISION_VARIABLE}={setting}")
    return cast(PrecisionSetting, setting)


@torch.compiler.assume_constant_result
def resolve(setting: PrecisionSetting, device_type: str) -> Precision:
    """Return the precision that a setting means on a type of device.

    `auto` is fp32 on CPUs, so that results do not depend on the processor. On CUDA devices it is bf16 if they compute it in
    hardware, else fp16. The hardware is queried only here, when a CUDA device is going to be used.

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
    """Return the autocast context in which a network computes; with None, that of the caller stays in effect."""
    if setting is None or not torch.amp.is_autocast_available(device_type):  # the meta device has none
        return nullcontext()
    precision = resolve(setting, device_type)
    if precision == "fp32":
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype=_REDUCED[precision])


def explain_choice(setting: PrecisionSetting, device_type: str) -> str:
    """Return the precision and the setting that it follows from, as text for logs, such as `fp32 on cpu (auto)`."""
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
