"""The folder of a converted data set: its name, whether its number is free, and the lock that one conversion holds."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.locks import LockHeld, lock
from nnunet_glims.nnunet.folders import PREPROCESSED, RESULTS

_LONGEST_NAME = 100
"""Characters of a data set's name. nnU-Net and this package add to it in the names of folders."""


@dataclass(frozen=True)
class Destination:
    """The folder and name of a converted data set.

    Attributes:
        raw: nnU-Net's folder of raw data sets.
        number: number of the data set, 1 to 999.
        name: name of the data set, without DatasetNNN_.
    """

    raw: Path
    number: int
    name: str

    @property
    def dataset(self) -> str:
        """Name of the data set's folder, DatasetNNN_NAME."""
        return f"Dataset{self.number:03d}_{self.name}"

    @property
    def folder(self) -> Path:
        """Folder of the complete data set."""
        return self.raw / self.dataset

    @property
    def unfinished(self) -> Path:
        """The folder for the data set until it is complete. nnU-Net does not see it, because its name begins with a dot.

        The folder holds the plan of the conversion, and the data set in the folder `dataset`.
        """
        return self.raw / f".{self.dataset}.unfinished"

    @property
    def unpacked(self) -> Path:
        """Path in whose parent folder the images of an archive are unpacked."""
        return self.raw / f".{self.dataset}.unpacked"

    def _check_names(self) -> None:
        if not 1 <= self.number <= 999:
            raise UsageError(f"data set number {self.number}: use one from 1 to 999")
        if not self.name or not all(part.isalnum() for part in self.name.replace("-", "_").split("_") if part):
            raise UsageError(f"data set name {self.name!r}: use letters, digits, - and _")
        if len(self.name.encode()) > _LONGEST_NAME:
            raise UsageError(f"data set name {self.name}: use at most {_LONGEST_NAME} characters")
        if not self.raw.is_dir():
            raise UsageError(f"{self.raw}: there is no such folder; the environment variable nnUNet_raw names it")

    def _check_free(self) -> None:
        """Raise `UsageError` if one of nnU-Net's three folders has the number, by nnU-Net's own rule.

        nnU-Net refuses a number that has two names. Where the name is the same, it would mix this data set with the old
        one's preprocessed images and models.
        """
        for root in (self.raw, PREPROCESSED.find(), RESULTS.find()):
            found = root.glob(f"Dataset{self.number:03d}*") if root else ()
            taken = sorted(path.name for path in found if path.is_dir())
            if taken:
                raise UsageError(
                    f"{root}: number {self.number} is taken by {taken[0]}: choose another one, or move that folder away"
                )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Check the destination, and keep other conversions to this number out while the block runs.

        Raises:
            UsageError: the number or name cannot be used or is taken.
            ProcessingError: another process converts to this number; the message says which, and since when.
        """
        self._check_names()
        path = self.raw / f".Dataset{self.number:03d}.lock"
        try:
            with lock(path, f"{self.raw}: conversion to data set {self.number}"):
                try:
                    self._remove_leftovers()
                    self._check_free()
                    yield
                finally:
                    with contextlib.suppress(OSError):  # Windows removes no file that is open
                        path.unlink()
        except LockHeld as error:
            raise ProcessingError(f"{error}, or choose another number") from None

    def _remove_leftovers(self) -> None:
        """Remove what killed conversions to this number left, besides an unfinished data set, which can be completed."""
        for working in self.raw.glob(f"..Dataset{self.number:03d}[_.]*"):  # beside hidden files and folders
            shutil.rmtree(working, ignore_errors=True)
        if self.folder.exists():  # killed after its last step
            shutil.rmtree(self.unfinished, ignore_errors=True)
