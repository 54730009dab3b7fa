"""Which trainers nnU-Net finds, without importing them where that is possible."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from nnunet_glims.errors import UsageError
from nnunet_glims.networks import networks
from nnunet_glims.nnunet.discovery import VARIABLE
from nnunet_glims.validation import nearest


def check_trainer(name: str) -> None:
    """Raise `UsageError` with the nearest known name where nnU-Net would find no trainer of that name.

    The trainers of registered networks, and classes that one of the searched files defines, are known. Only for other
    names nnU-Net itself is asked, which imports all of these files.
    """
    known = {trainer for network in networks() for trainer in network.trainers}
    if name in known:
        return
    for text in _searched_files():
        known.update(re.findall(r"^class (\w+)", text, re.MULTILINE))
        if name in known:
            return
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

            recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError, TypeError):  # TypeError: there is something of that name that is no class
        raise UsageError(f"nnU-Net finds no trainer {name!r}: {nearest(name, sorted(known))}") from None


def _searched_files() -> Iterator[str]:
    """Yield the text of every file in which nnU-Net looks for trainers."""
    own = find_spec("nnunetv2")
    roots = [Path(place, "training/nnUNetTrainer") for place in (own.submodule_search_locations or ())] if own else []
    roots += [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder.strip()]
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            yield file.read_text(encoding="utf-8", errors="replace")
