"""The models that were trained with the plans: whether every checkpoint can be read."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_glims.doctor.findings import Finding, Findings, isolated


def check(dataset: str, trainer: str, plans_name: str, configuration: str) -> Findings[None]:
    """Yield a finding for each checkpoint of each fold."""
    results = os.environ.get("nnUNet_results")
    if not results:
        return
    folder = Path(results, dataset, f"{trainer}__{plans_name}__{configuration}")
    for checkpoint in sorted(folder.glob("fold_*/checkpoint_*.pth")):
        name = f"{checkpoint.parent.name}/{checkpoint.name}"
        yield from isolated(name, _check_checkpoint, name, checkpoint)


def _check_checkpoint(name: str, checkpoint: Path) -> Findings[None]:
    from nnunet_glims.trainers.checkpoint_files import is_intact

    if is_intact(checkpoint):
        yield Finding(name, "ok", "readable")
    else:
        yield Finding(name, "fail", f"{checkpoint} is damaged", "delete it: --c goes on from the one before")
