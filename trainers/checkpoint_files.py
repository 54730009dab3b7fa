"""Write checkpoints so that a crash leaves the old or the new one, and check them before they are loaded."""

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
"""Name of the checkpoint before the latest one."""


def is_intact(checkpoint: Path) -> bool:
    """Return whether the file is a checkpoint that was written to its end and whose bytes have their checksums."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def newest_intact(folder: Path, *wanted: Path) -> Path | None:
    """Return the first intact file among `wanted` and the folder's latest, previous and best checkpoint; None if none is."""
    return next(filter(is_intact, [*wanted, *(folder / name for name in (LATEST, PREVIOUS, BEST))]), None)


def write_checkpoint(target: Path, save: Callable[[str], None]) -> None:
    """Write a checkpoint so that `target` is the old one or the complete new one at any moment.

    The latest checkpoint from before is kept under the name `PREVIOUS`.

    Args:
        target: path of the checkpoint.
        save: function that writes the checkpoint to the path it is given.

    Raises:
        ProcessingError: the checkpoint could not be written, for example because the disk is full. `target` is unchanged.
    """
    try:
        with new_file(target) as temporary:
            try:
                save(str(temporary))
            except RuntimeError as error:  # torch turns errors of the file system into this one
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
