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
    from nnunet_glims.errors import UsageError
    from nnunet_glims.nnunet.checkpoints import is_intact, load_checkpoint, not_finite

    way_out = "delete it: --c goes on from the one before"
    if not is_intact(checkpoint):
        yield Finding(name, "fail", f"{checkpoint} is damaged", way_out)
        return
    try:
        bad = not_finite(load_checkpoint(checkpoint)["network_weights"])
    except UsageError as error:
        yield Finding(
            name, "warn", f"its weights were not looked at: {error}", "see whether it is one of nnU-Net's own"
        )
        return
    if bad:
        yield Finding(name, "fail", f"{checkpoint} holds weights that are not finite ({bad})", way_out)
    else:
        yield Finding(name, "ok", "readable")
