"""Whether nnU-Net finds the trainer."""

from __future__ import annotations

import os
import subprocess
import sys

from nnunet_glims.doctor.findings import Finding, Findings
from nnunet_glims.nnunet.discovery import OPT_OUT, VARIABLE

_PROGRAM = (
    "import sys; from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
    "found = find(sys.argv[1]); print(); print(found.__module__, found.__name__)"
)


def check(trainer: str) -> Findings[None]:
    """Yield whether nnU-Net finds the trainer, in a process of its own that starts as nnUNetv2_train does."""
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, trainer],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        cwd=os.path.sep,
    )
    if result.returncode == 0:
        yield Finding("trainer", "ok", result.stdout.splitlines()[-1])
    elif os.environ.get(OPT_OUT, "") not in ("", "0"):
        yield Finding("trainer", "fail", f"{trainer} is not found: {OPT_OUT} is set", f"unset {OPT_OUT}")
    else:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        state = f"{trainer} is not found ({VARIABLE}={os.environ.get(VARIABLE, '')}): {reason}"
        yield Finding("trainer", "fail", state, _way_out(trainer))


def _way_out(trainer: str) -> str:
    from nnunet_glims.networks import networks
    from nnunet_glims.validation import nearest

    known = [name for network in networks() for name in network.trainers]
    if trainer in known:
        return 'eval "$(nnunet-glims env)"'
    return f'eval "$(nnunet-glims env)", or look for a typing error in the name: {nearest(trainer, known)}'
