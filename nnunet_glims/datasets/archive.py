"""The source of a conversion: a folder, or a zip or tar archive whose images are unpacked while the conversion runs."""

from __future__ import annotations

import copy
import hashlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from nnunet_glims.errors import ProcessingError, UsageError, UserError
from nnunet_glims.files import check_free_space, working_folder

ENDINGS = (".nii", ".nii.gz")
_ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_DAMAGES = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, EOFError, zlib.error, ValueError, RuntimeError)


@dataclass(frozen=True)
class Source:
    """The files of a release.

    Attributes:
        folder: folder that contains the files, directly or in folders below it.
        files: the NIfTI files, sorted. Files whose names begin with ._ are metadata of macOS and are left out.
        fingerprint: identifies the source, as JSON: path, size, time of change, and a digest of the names, sizes and times
            (in a zip: checksums) of its images.
    """

    folder: Path
    files: tuple[Path, ...]
    fingerprint: dict[str, Any]


def is_archive(source: Path) -> bool:
    """Return whether a file is a zip or tar archive, compressed or not, or has the name of one."""
    if not source.is_file():
        return False
    return source.name.lower().endswith(_ARCHIVE_ENDINGS) or zipfile.is_zipfile(source) or tarfile.is_tarfile(source)


@contextmanager
def opened(source: Path, unpacked: Path) -> Iterator[Source]:
    """Give the files of a release; those of an archive are unpacked to a new folder, which is removed when the block ends.

    Args:
        source: a folder, or a zip or tar archive.
        unpacked: path in whose parent folder the new folder is made.

    Raises:
        UsageError: there is no such source, or it is neither a folder nor an archive.
        ProcessingError: the archive is damaged or cut off, a name in it lies outside of the folder, or the disk is full.
    """
    if source.is_dir():
        yield _source(source, {"path": str(source.resolve())})
    elif not source.exists():
        raise UsageError(f"{source}: there is no such folder or archive")
    elif not is_archive(source):
        raise UsageError(f"{source}: this is neither a folder nor a zip or tar archive")
    else:
        with working_folder(unpacked) as folder:
            about = source.stat()
            fingerprint = {"path": str(source.resolve()), "bytes": about.st_size, "modified_ns": about.st_mtime_ns}
            fingerprint["images"] = _unpack(source, folder)
            yield Source(folder, tuple(_images(folder)), fingerprint)


def inside_name(name: str) -> str | None:
    r"""Return the name of a member with / between folders; None if it is absolute or leads out of its folder.

    Some Windows programs write \ between folders, contrary to the zip standard. A name with a drive letter is absolute.
    """
    path = PureWindowsPath(name)
    return None if path.anchor or ".." in path.parts else path.as_posix()


def _images(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.name.endswith(ENDINGS) and not path.name.startswith("._"))
    return sorted(path for path in files if path.is_file())


def _source(folder: Path, fingerprint: dict[str, Any]) -> Source:
    files = tuple(_images(folder))
    listing = ((file.relative_to(folder).as_posix(), file.stat()) for file in files)
    found = _digest((name, about.st_size, about.st_mtime_ns) for name, about in listing)
    return Source(folder, files, {**fingerprint, "images": found})


def _digest(listing: Iterable[tuple[Any, ...]]) -> str:
    return hashlib.sha256("\n".join(map(repr, listing)).encode()).hexdigest()


def _unpack(source: Path, folder: Path) -> str:
    """Unpack the NIfTI files of an archive, and return a digest of its listing."""
    try:
        with zipfile.ZipFile(source) if zipfile.is_zipfile(source) else tarfile.open(source) as archive:
            if isinstance(archive, zipfile.ZipFile):
                return _unpack_zip(source, archive, folder)
            return _unpack_tar(source, archive, folder)
    except UserError:
        raise
    except OSError as error:
        if error.errno is not None:  # an error of the file system; gzip and bzip2 raise errors about the content
            raise
        raise _damaged(source, error) from None
    except _DAMAGES as error:
        raise _damaged(source, error) from None


def _damaged(source: Path, error: Exception) -> ProcessingError:
    return ProcessingError(
        f"{source}: this archive is damaged, cut off or cannot be unpacked: {error or type(error).__name__}. "
        "Copy or download it again"
    )


def _unpack_zip(source: Path, archive: zipfile.ZipFile, folder: Path) -> str:
    members = [
        member
        for member in archive.infolist()
        if member.filename.endswith(ENDINGS) and not stat.S_ISLNK(member.external_attr >> 16)
    ]
    check_free_space(sum(member.file_size for member in members), folder, f"to unpack {source.name}")
    for member in members:
        member.filename = _checked_name(source, member.filename)
        archive.extract(member, folder)
    return _digest((member.filename, member.file_size, member.CRC) for member in members)


def _unpack_tar(source: Path, archive: tarfile.TarFile, folder: Path) -> str:
    archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.10.0 to 3.10.11 do not have it
    members = [member for member in archive.getmembers() if member.isfile() and member.name.endswith(ENDINGS)]
    check_free_space(sum(member.size for member in members), folder, f"to unpack {source.name}")
    for member in members:
        renamed = copy.copy(member)
        renamed.name = _checked_name(source, member.name)
        archive.extract(renamed, folder, set_attrs=False)
    assert archive.fileobj is not None
    while archive.fileobj.read(2**20):  # up to the checksum at the end of a compressed archive
        pass
    return _digest((member.name, member.size, member.mtime) for member in members)


def _checked_name(source: Path, name: str) -> str:
    inside = inside_name(name)
    if inside is None:
        raise ProcessingError(f"{source}: {name} would lie outside of the folder that the archive is unpacked to")
    return inside
