"""Write checkpoints so that a crash leaves the old or the new one, and check them before they are loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunet_glims.errors import ProcessingError
from nnunet_glims.files import new_file, unwritable
from nnunet_glims.nnunet.checkpoints import is_intact, load_checkpoint, not_finite

LATEST, BEST = "checkpoint_latest.pth", "checkpoint_best.pth"
"""The names nnU-Net gives to the checkpoints of an unfinished training."""
PREVIOUS = "checkpoint_previous.pth"
"""Name of the checkpoint before the latest one."""


@dataclass(frozen=True)
class Examined:
    """What a checkpoint's file holds.

    Attributes:
        path: the file.
        epoch: number of completed epochs; -1 if the file cannot be read.
        problem: why the training cannot go on from it, such as "is damaged"; empty if it can.
    """

    path: Path
    epoch: int
    problem: str


def examine(checkpoint: Path) -> Examined:
    """Read a checkpoint and return whether a training can go on from it: it is intact, and all weights are finite."""
    if is_intact(checkpoint):
        try:
            content = load_checkpoint(checkpoint, trust=True)
            epoch, bad = int(content["current_epoch"]), not_finite(content["network_weights"])
        except Exception:  # a pickle of other content may raise anything
            return Examined(checkpoint, -1, "is damaged")
        return Examined(checkpoint, epoch, f"holds weights that are not finite ({bad})" if bad else "")
    return Examined(checkpoint, -1, "is damaged")


def newest_usable(checkpoints: Iterable[Path]) -> Examined | None:
    """Return the checkpoint with the most epochs, the first of several; None if the training can go on from none of them."""
    found = [one for one in map(examine, filter(Path.exists, checkpoints)) if not one.problem]
    return max(found, key=lambda one: one.epoch, default=None)


def remove_cut_checkpoints(folder: Path) -> None:
    """Remove what killed trainings left when they wrote checkpoints. No other process may write to the folder now."""
    for path in folder.glob(".checkpoint_*.pth.*"):
        shutil.rmtree(path, ignore_errors=True)


def write_checkpoint(target: Path, save: Callable[[str], None], keep: bool = True) -> None:
    """Write a checkpoint so that `target` is the old one or the complete new one at any moment.

    Args:
        target: path of the checkpoint.
        save: function that writes the checkpoint to the path it is given.
        keep: whether to keep the latest checkpoint from before under the name `PREVIOUS`.

    Raises:
        ProcessingError: the checkpoint could not be written, for example because the disk is full. `target` is unchanged.
    """
    try:
        with new_file(target) as temporary:
            try:
                save(str(temporary))
            except RuntimeError as error:  # torch turns errors of the file system into this one
                reason = f"the disk took only a part of it ({' '.join(str(error).split())[:300]})"
                raise unwritable(target, reason) from error
            if keep and target.name == LATEST and target.exists():
                _keep(target, target.with_name(PREVIOUS))
    except ProcessingError as error:
        raise ProcessingError(f"{error}. With --c the training goes on from the last checkpoint") from error


def _keep(checkpoint: Path, name: Path) -> None:
    name.unlink(missing_ok=True)
    try:
        os.link(checkpoint, name)
    except OSError:  # a file system without hard links
        shutil.copy2(checkpoint, name)
