"""Find what would keep a training from running well, before it starts, and say what to do about it.

Each module has the checks of one idea. A check is a generator of findings; it runs isolated from the others, and imports
what it needs itself, because what it needs may be what is broken.
"""

from __future__ import annotations

from collections.abc import Iterator

from nnunet_glims.doctor import data_set, device, discovery, folders, limits, variables, versions
from nnunet_glims.doctor.findings import Finding, isolated


def examine(
    dataset: str | None = None,
    trainer: str = "nnUNetTrainerGLIMS",
    plans: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
) -> Iterator[Finding]:
    """Yield all findings: about the machine, then about the data set, its plans and the models trained with them.

    No content of files or variables raises an error: what cannot be checked is a finding.

    Args:
        dataset: number or name of the data set; None checks the machine only.
        trainer, plans, configuration: names as for nnUNetv2_train.
    """
    yield from isolated("versions", versions.check)
    yield from folders.check()
    yield from isolated("trainer", discovery.check, trainer)
    yield from isolated("GPU", device.check_gpus)
    yield from isolated("CPU kernels", device.check_cpu_kernels)
    yield from variables.check()
    yield from isolated("shared memory", limits.check_shared_memory)
    yield from isolated("open files", limits.check_open_files)
    if dataset is not None:
        yield from isolated("data set", data_set.check, dataset, trainer, plans, configuration)
