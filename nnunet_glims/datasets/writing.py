"""Write the files of a case in nnU-Net's layout: copied, linked or renamed, or with other labels or axes."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from nnunet_glims.datasets.cases import Release, SourceCase
from nnunet_glims.errors import ProcessingError
from nnunet_glims.files import new_file, sync, write_bytes
from nnunet_glims.images import read_nifti

Transfer = Literal["copy", "symlink", "move"]


@dataclass(frozen=True)
class FileToWrite:
    """A file of the converted data set.

    Attributes:
        source: the file of the release that it is made from.
        target: its path.
        transfer: how a file that needs no change is transferred.
        label_map: label in the release -> label in nnU-Net; None for files whose voxels are not changed.
    """

    source: Path
    target: Path
    transfer: Transfer
    label_map: Mapping[int, int] | None

    @property
    def nbytes(self) -> int:
        """The approximate number of bytes of the file on the disk; 0 for a link and for what is only renamed."""
        if self.transfer != "copy" and self.label_map is None:
            return 0
        with contextlib.suppress(OSError):  # of a source that has disappeared, about which `write` raises an error
            return self.source.stat().st_size
        return 0

    def write(self) -> None:
        """Write the file, which is complete or does not exist.

        Raises:
            ProcessingError: the file cannot be written, or its source cannot be read any more.
        """
        try:
            self._transfer()
        except OSError as error:
            raise ProcessingError(
                f"{error.filename or self.source}: {error.strerror or error}. What was written so far is kept: run the "
                "command again to go on"
            ) from None

    def _transfer(self) -> None:
        if self.label_map is not None:
            self._write(relabelled(self.source, self.label_map))
        elif _has_more_axes(self.source):
            self._write(three_axes(_decompressed(self.source)))
        elif _is_gz(self.source) != _is_gz(self.target):
            self._write(_decompressed(self.source))
        elif self.transfer == "symlink":
            self.target.symlink_to(self.source.resolve())
        elif self.transfer == "move":
            sync(self.source)
            os.replace(self.source, self.target)
        else:
            with new_file(self.target) as temporary:
                shutil.copyfile(self.source, temporary)

    def _write(self, nifti: bytes) -> None:
        # There is no time stamp, so that the same release gives the same bytes.
        write_bytes(self.target, gzip.compress(nifti, 6, mtime=0) if _is_gz(self.target) else nifti)


def files_to_write(case: SourceCase, release: Release, folder: Path, transfer: Transfer) -> Iterator[FileToWrite]:
    """Yield the files of a case in nnU-Net's layout, below the folder of the data set."""
    split = "Ts" if case.label is None else "Tr"
    for channel, image in enumerate(case.images):
        name = f"{case.name}_{channel:04d}{release.file_ending}"
        yield FileToWrite(image, folder / f"images{split}" / name, transfer, None)
    if case.label is not None:
        unchanged = all(theirs == ours for theirs, ours in release.label_map.items())
        label_map = None if unchanged else dict(release.label_map)
        yield FileToWrite(case.label, folder / f"labelsTr/{case.name}{release.file_ending}", transfer, label_map)


def relabelled(file: Path, label_map: Mapping[int, int]) -> bytes:
    """Return a NIfTI file with labels replaced, as uint8; header and geometry stay the same to the last bit."""
    labels, _ = read_nifti(file)  # the same numbers as those that were checked
    changed = np.zeros(labels.shape, np.uint8)
    for theirs, ours in label_map.items():
        changed[labels == theirs] = ours
    header = nibabel.Nifti1Image.from_bytes(three_axes(_decompressed(file))).header.copy()
    header.set_data_dtype(np.uint8)
    return nibabel.Nifti1Image(changed, None, header).to_bytes()


def three_axes(nifti: bytes) -> bytes:
    """Return a NIfTI file without axes of length 1 after the third, which nnU-Net takes for channels."""
    header = _header(nifti)
    header["dim"][0] = min(header["dim"][0], 3)
    return header.binaryblock + nifti[header.sizeof_hdr :]


def _header(nifti: bytes) -> nibabel.Nifti1Header:
    return nibabel.Nifti1Header(nifti[: nibabel.Nifti1Header.sizeof_hdr], check=False)


def _is_gz(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def _decompressed(file: Path) -> bytes:
    content = file.read_bytes()
    return gzip.decompress(content) if _is_gz(file) else content


def _has_more_axes(file: Path) -> bool:
    with (gzip.open if _is_gz(file) else open)(file, "rb") as opened:
        return int(_header(opened.read(nibabel.Nifti1Header.sizeof_hdr))["dim"][0]) > 3
