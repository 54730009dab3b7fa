"""Environment variables of nnU-Net and of this package other than nnU-Net's folders."""

from __future__ import annotations

import os

from nnunet_glims.doctor.findings import Finding, Findings, isolated


def check() -> Findings[None]:
    """Yield findings about the numbers of processes, and about precision and kernels where their variables are set."""
    yield from isolated("nnUNet_n_proc_DA", _check_loading_processes)
    yield from isolated("nnUNet_def_n_proc", _check_processes)
    yield from isolated("precision", _check_precision)
    yield from isolated("kernels", _check_kernels)


def _check_loading_processes() -> Findings[None]:
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    from nnunet_glims.processes import available_cores

    name, cores = "nnUNet_n_proc_DA", available_cores()
    origin = "allotted by SLURM" if os.environ.get("SLURM_CPUS_PER_TASK") else "usable here"
    set_it = f"export {name}={max(1, cores - 1)}"
    try:
        workers = get_allowed_n_proc_DA()
    except ValueError:
        yield Finding(name, "fail", f"{os.environ.get(name)!r} is no number", set_it)
        return
    text = f"{workers} data loading processes, {cores} cores {origin}"
    if workers < 0:
        yield Finding(name, "fail", f"{workers} processes", set_it)
    elif workers == 0:
        text += ": training works with none, nnU-Net's planning does not"
        yield Finding(name, "warn", text, f"{name}=1 nnUNetv2_plan_and_preprocess ...")
    elif workers > cores:
        yield Finding(name, "warn", text, set_it)
    else:
        yield Finding(name, "ok", text)


def _check_processes() -> Findings[None]:
    """The number of processes of preprocessing and validation, without which nnU-Net cannot even be imported."""
    name = "nnUNet_def_n_proc"
    value = os.environ.get(name)
    if value is None:
        return
    try:
        processes = int(value)
    except ValueError:
        processes = 0
    if processes < 1:
        yield Finding(name, "fail", f"{value!r} is no number of processes", f"unset {name}, or export {name}=8")


def _check_precision() -> Findings[None]:
    from nnunet_glims.errors import UsageError
    from nnunet_glims.training.precision import chosen
    from nnunet_glims.training.recipes import PRECISION_VARIABLE

    if not os.environ.get(PRECISION_VARIABLE):
        return
    try:
        yield Finding(PRECISION_VARIABLE, "ok", f"{chosen('auto')}, whatever plans say")
    except UsageError as error:
        yield Finding(PRECISION_VARIABLE, "fail", str(error), f"unset {PRECISION_VARIABLE}")


def _check_kernels() -> Findings[None]:
    from nnunet_glims.kernels.ops import SETTINGS

    name = "NNUNET_GLIMS_KERNELS"
    value = os.environ.get(name, "auto")
    if value not in SETTINGS:
        yield Finding(name, "fail", f"{value!r} is none of {', '.join(SETTINGS)}", f"unset {name}")
    elif value != "auto":
        yield Finding(name, "ok", value)
