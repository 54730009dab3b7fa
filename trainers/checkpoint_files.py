"""Checkpoints as files: written so that a crash leaves the old one or the new one, and checked before they are loaded."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from nnunet_glims.errors import ProcessingError
from nnunet_glims.files import new_file, unwritable

LATEST, BEST = "checkpoint_latest.pth", "checkpoint_best.pth"
"""The names nnU-Net gives to the checkpoints of an unfinished training."""
PREVIOUS = "checkpoint_previous.pth"
"""The latest checkpoint but one."""


def is_intact(checkpoint: Path) -> bool:
    """Whether the file is a checkpoint that was written to its end and whose bytes have their checksums."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def newest_intact(folder: Path, *wanted: Path) -> Path | None:
    """The first intact one of the wanted files and of the folder's latest, previous and best checkpoint."""
    return next(filter(is_intact, [*wanted, *(folder / name for name in (LATEST, PREVIOUS, BEST))]), None)


def write_checkpoint(target: Path, save: Callable[[str], None]) -> None:
    """Write a checkpoint so that `target` is the old one or the complete new one at any moment.

    The latest checkpoint that was there before is kept under the name `PREVIOUS`.

    Args:
        target: the checkpoint's name.
        save: writes the checkpoint to the path it is given.

    Raises:
        ProcessingError: it could not be written, for example because the disk is full. `target` is as it was.
    """
    try:
        with new_file(target) as temporary:
            try:
                save(str(temporary))
            except RuntimeError as error:  # what torch makes of the errors of a file system
                raise unwritable(target, " ".join(str(error).split())[:300]) from error
            if target.name == LATEST and target.exists():
                _keep(target, target.with_name(PREVIOUS))
    except ProcessingError as error:
        raise ProcessingError(f"{error}. With --c the training goes on from the last checkpoint") from error


def _keep(checkpoint: Path, name: Path) -> None:
    name.unlink(missing_ok=True)
    try:
        os.link(checkpoint, name)
    except OSError:  # a file system without hard links
        shutil.copy2(checkpoint, name)
