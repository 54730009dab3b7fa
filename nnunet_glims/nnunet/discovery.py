"""Let unmodified nnU-Net find the trainers of this package.

nnU-Net looks for trainers in its own package, then in the folders that the environment variable `nnUNet_extTrainer` lists.
A file `nnunet_glims.pth`, installed beside the package, calls `announce` whenever Python starts, which appends our folder
to that variable. Every Python process therefore imports this module, so it must stay small.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

VARIABLE = "nnUNet_extTrainer"
OPT_OUT = "NNUNET_GLIMS_NO_DISCOVERY"
TRAINER_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "found_by_nnunet")
"""Holds one module that imports the trainers from the installed package: nnU-Net forgets the modules it imports from an
external folder, so the classes themselves must not live there."""


def extended(folders: str) -> str:
    """Return the variable's value with our folder after the user's own; unchanged if it is listed already."""
    parts = [part for part in folders.split(os.pathsep) if part]
    return folders if TRAINER_FOLDER in parts else os.pathsep.join([*parts, TRAINER_FOLDER])


def announce(environment: MutableMapping[str, str] = os.environ) -> None:
    """Extend the variable for this process and the processes that it starts, unless the user has opted out."""
    if environment.get(OPT_OUT, "") in ("", "0"):
        environment[VARIABLE] = extended(environment.get(VARIABLE, ""))
