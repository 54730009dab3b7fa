"""A release as a folder, a zip or a tar. Files whose names begin with ._ are macOS' notes, not images."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nnunet_glims.errors import UsageError
from nnunet_glims.files import check_free_space

_COMPLETE = ".complete"
ENDINGS = (".nii", ".nii.gz")
_DAMAGES = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, ValueError)


def is_archive(source: Path) -> bool:
    """Is this file a zip or a tar, compressed or not?"""
    return source.is_file() and (zipfile.is_zipfile(source) or tarfile.is_tarfile(source))


def images_of(source: Path, unpacked: Path) -> tuple[Path, list[Path]]:
    """All NIfTI files of a release, and the folder they are in.

    Args:
        source: a folder, with the files in whatever folders below it; or a zip or tar.
        unpacked: folder to unpack an archive's images to. One left complete by an earlier call is used as it is.

    Raises:
        UsageError: no such source, neither folder nor archive, a damaged archive, or no room for its images.
    """
    if source.is_dir():
        folder = source
    elif not source.exists():
        raise UsageError(f"{source}: there is no such folder or archive")
    elif not is_archive(source):
        raise UsageError(f"{source}: this is neither a folder nor a zip or tar archive")
    else:
        folder = unpacked
        if not (unpacked / _COMPLETE).exists():
            shutil.rmtree(unpacked, ignore_errors=True)
            _unpack(source, unpacked)
    files = (path for path in folder.rglob("*") if path.name.endswith(ENDINGS) and not path.name.startswith("._"))
    return folder, sorted(path for path in files if path.is_file())


def _unpack(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(source) if zipfile.is_zipfile(source) else tarfile.open(source) as archive:
            members = _members(archive)
            check_free_space(sum(size for _, size, _ in members), folder, f"to unpack {source.name}")
            for name, _, read in members:
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts:
                    raise UsageError(f"{source}: {name} would lie outside of the folder it is unpacked to")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with read() as content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, 2**20)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, _DAMAGES) and not isinstance(error, UsageError):
            raise UsageError(f"{source}: this archive is damaged or cannot be unpacked: {error}") from None
        raise
    (folder / _COMPLETE).touch()


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> list[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Name, bytes and opener of each NIfTI file; links are left out."""
    found: list[tuple[str, int, Callable[[], Any]]]
    if isinstance(archive, zipfile.ZipFile):
        found = [(info.filename, info.file_size, partial(archive.open, info)) for info in archive.infolist()]
    else:
        found = [
            (info.name, info.size, partial(archive.extractfile, info)) for info in archive.getmembers() if info.isfile()
        ]
    return [member for member in found if member[0].endswith(ENDINGS)]
