"""The source of a conversion: a folder, or a zip or tar archive whose images are unpacked while the conversion runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_glims.datasets.cases import readable
from nnunet_glims.datasets.unpacking import ARCHIVE_ENDINGS, ENDINGS, is_archive, is_other, unpack
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import working_folder

_OTHER_ARCHIVES = (".7z", ".rar", ".001", ".z01", ".gz", ".bz2", ".xz", ".zst")
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """The files of a release.

    Attributes:
        folder: folder that contains the files, directly or in folders below it.
        files: the NIfTI files, sorted. Hidden files, such as those of macOS (._NAME), are left out. Links to files that do
            not exist are among them, because reading them tells which case is incomplete.
        fingerprint: identifies the source, as JSON: path, size, time of change, and a digest of the names, sizes and times
            (in a zip: checksums) of its images.
    """

    folder: Path
    files: tuple[Path, ...]
    fingerprint: dict[str, Any]


@contextmanager
def opened(source: Path, unpacked: Path) -> Iterator[Source]:
    """Give the files of a release; those of an archive are unpacked to a new folder, which is removed when the block ends.

    Args:
        source: a folder, or a zip or tar archive, which may have archives in it.
        unpacked: path in whose parent folder the new folder is made.

    Raises:
        UsageError: there is no such source, it is neither a folder nor an archive, or there are no NIfTI files in it.
        ProcessingError: the archive cannot be unpacked (`unpacking.unpack`), or a folder cannot be read.
    """
    if source.is_dir():
        images, archives = _below(source)
        _check_any(source, images, archives)
        listing = [(file.relative_to(source).as_posix(), *_size_and_time(file)) for file in images]
        yield Source(source, tuple(images), {"path": readable(str(source.resolve())), "images": _digest(listing)})
    elif not os.path.lexists(source):
        raise UsageError(f"{source}: there is no such folder or archive")
    elif not source.exists():
        raise UsageError(f"{source}: this link leads to {os.readlink(source)}, which is not there")
    elif not is_archive(source):
        packed = source.name.lower().endswith(_OTHER_ARCHIVES) and not source.name.lower().endswith(ENDINGS)
        way_out = ": unpack it first, and convert the folder" if packed else ""
        raise UsageError(f"{source}: this is neither a folder nor a zip or tar archive{way_out}")
    else:
        with working_folder(unpacked) as folder:
            about = source.stat()
            fingerprint = {
                "path": readable(str(source.resolve())),
                "bytes": about.st_size,
                "modified_ns": about.st_mtime_ns,
            }
            # Another folder, because the working folder has a lock in it.
            content = folder / "content"
            content.mkdir()
            fingerprint["images"] = _digest(unpack(source, content))
            images, _ = _below(content)
            _check_any(source, images, [])
            yield Source(content, tuple(images), fingerprint)


def _check_any(source: Path, images: list[Path], archives: list[Path]) -> None:
    if images:
        return
    if archives:
        names = ", ".join(str(path.relative_to(source)) for path in archives[:_SHOWN])
        raise UsageError(
            f"{source}: has no NIfTI files, but archives ({names}): unpack them there, or convert one of them"
        )
    raise UsageError(f"{source}: has no NIfTI files (*.nii.gz, *.nii)")


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the NIfTI files and the archives in a folder and those below it, sorted.

    Links to folders are followed, and each folder is visited once, so that a link to a folder above does no harm.
    """
    images, archives, visited = [], [], set()
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        if (real := os.path.realpath(inside)) in visited:
            continue
        visited.add(real)
        try:
            found = sorted(inside.iterdir(), reverse=True)
        except OSError as error:
            raise ProcessingError(f"{inside}: this folder cannot be read: {error.strerror}") from None
        for path in found:
            if is_other(Path(path.name)):
                continue
            if path.is_dir():
                waiting.append(path)
            elif path.name.lower().endswith(ENDINGS) and (path.is_file() or not path.exists()):
                images.append(path)
            elif path.name.lower().endswith(ARCHIVE_ENDINGS) and path.is_file():
                archives.append(path)
    return sorted(images), sorted(archives)


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        about = file.stat()
    except OSError:  # a link to a file that is not there
        return -1, -1
    return about.st_size, about.st_mtime_ns


def _digest(listing: Iterable[tuple[Any, ...]]) -> str:
    return hashlib.sha256("\n".join(map(repr, listing)).encode()).hexdigest()
