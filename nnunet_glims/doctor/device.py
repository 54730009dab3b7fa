"""GPUs, and the faster kernels for them and for CPUs."""

from __future__ import annotations

import warnings

from nnunet_glims.doctor.findings import Finding, Findings


def check_gpus() -> Findings[None]:
    """Yield each GPU with its memory and the precision that `auto` takes there, and whether it has kernels."""
    import torch

    from nnunet_glims.kernels import gpu
    from nnunet_glims.training.precision import resolve

    if not torch.cuda.is_available():
        way_out = "train with -device cpu, or install a CUDA build of torch"
        yield Finding("GPU", "warn", "none that torch can use", way_out)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory, precision = properties.total_memory / 2**30, resolve("auto", "cuda")
        yield Finding(f"GPU {index}", "ok", f"{properties.name}, {memory:.0f} GiB; precision auto is {precision}")
    if gpu.library() is not None:
        yield Finding("GPU kernels", "ok", "Triton can be imported")
    else:
        state = "Triton cannot be imported: GLIMS is slower on GPUs and needs more of their memory"
        yield Finding("GPU kernels", "warn", state, "install torch with CUDA for Linux, which brings it")


def check_cpu_kernels() -> Findings[None]:
    """Yield whether the kernels for CPUs can be compiled and loaded, and why not."""
    from nnunet_glims.kernels import compiled

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        problem = compiled.problem()
    if problem is not None:
        yield Finding("CPU kernels", "warn", f"{problem}: GLIMS is slower on CPUs", problem.way_out)
    else:
        repaired = "".join(f"; {warning.message}" for warning in told)
        yield Finding("CPU kernels", "ok", f"compiled, in {compiled.cache_folder()}{repaired}")


def first_memory() -> tuple[float, str, str]:
    """Return the memory in GiB of the first GPU, or without GPU of this process; the device type; and a name for the memory."""
    import torch

    from nnunet_glims.processes import available_memory

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 2**30, "cuda", "GPU 0"
    return available_memory() / 2**30, "cpu", "usable here"
