"""Unpack the NIfTI files of a zip or tar archive, and of archives in it.

Only regular files are written, with new names inside the folder, whatever the archive says about owners, permissions and
links. A link to another member becomes a copy of it.
"""

from __future__ import annotations

import errno
import lzma
import os
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from nnunet_glims.errors import ProcessingError, UserError
from nnunet_glims.files import check_free_space

ENDINGS = (".nii", ".nii.gz")
"""How names of images end, in small letters."""
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_WANTED = (*ENDINGS, *ARCHIVE_ENDINGS)
_OTHER_FOLDERS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found")
"""Folders of operating systems and storage servers, in small letters: metadata and deleted files."""
_LONGEST_LINK = 4096
"""Bytes of the path that a link has."""
_DEEPEST = 3
"""How often archives may lie in archives."""
_DAMAGES = (
    zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, struct.error, EOFError, LookupError, ArithmeticError,
    ValueError, RuntimeError,
)  # fmt: skip
"""What Python's modules raise about damaged archives."""
_METHODS = {9: "Deflate64", 98: "PPMd", 93: "Zstandard", 95: "xz", 99: "AES encryption"}
_READABLE_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED, _UTF_8 = 0x1, 0x800  # bits of a zip member's flags


@dataclass(frozen=True)
class _Member:
    """A file in an archive.

    Attributes:
        name: its path, with / between folders; it does not lead out of the folder.
        nbytes: size of the unpacked file.
        stamp: tells its content from another one: the checksum (zip) or the time of change (tar).
        open: gives its content.
    """

    name: str
    nbytes: int
    stamp: Any
    open: Callable[[], IO[bytes] | None]


def is_archive(source: Path) -> bool:
    """Return whether a file is a zip or tar archive, compressed or not, or has the name of one."""
    if not source.is_file():
        return False
    return source.name.lower().endswith(ARCHIVE_ENDINGS) or tarfile.is_tarfile(source) or zipfile.is_zipfile(source)


def is_other(path: PurePosixPath | Path) -> bool:
    """Return whether a path inside a release is hidden, or belongs to an operating system or a storage server."""
    return any(part.startswith(".") or part.lower() in _OTHER_FOLDERS for part in path.parts)


def inside_name(name: str) -> str | None:
    r"""Return the name of a member with / between folders; None if it is absolute or leads out of its folder.

    Some Windows programs write \ between folders, contrary to the zip standard. A name with a drive letter is absolute.
    """
    path = PureWindowsPath(name)
    return None if path.anchor or ".." in path.parts else path.as_posix()


def unpack(source: Path, folder: Path, shown: str | None = None, depth: int = 1) -> list[tuple[str, int, Any]]:
    """Unpack the NIfTI files of an archive, and of archives in it, into a folder.

    Args:
        source: a zip or tar archive, compressed or not.
        folder: an existing folder.
        shown: how messages name the archive; None for its path.
        depth: 1 for an archive, 2 for one in it, and so on.

    Returns:
        Name, size, and checksum or time of change of each unpacked file.

    Raises:
        ProcessingError: the archive is damaged, cut off, encrypted or packed in a way that Python cannot unpack; a name in
            it lies outside of the folder, or is there twice; a link leads to a file that is not in the archive; or the
            disk is full.
    """
    shown = shown or str(source)
    if depth > _DEEPEST:
        raise ProcessingError(f"{shown}: archives lie in archives more than {_DEEPEST} deep: unpack it first")
    try:
        with _members(source, shown) as members:
            check_free_space(sum(member.nbytes for member in members), folder, f"to unpack {shown}")
            for member in members:
                _write(member, folder, shown)
    except UserError:
        raise
    except OSError as error:
        # Errors about the content have no number, or that of an impossible place in the file; others are the disk's.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(shown, error) from None
    except _DAMAGES as error:
        raise _damaged(shown, error) from None
    listing = [(member.name, member.nbytes, member.stamp) for member in members]
    for name in [member.name for member in members if member.name.lower().endswith(ARCHIVE_ENDINGS)]:
        packed = folder / ".packed"
        (folder / name).rename(packed)
        (folder / name).mkdir()
        unpack(packed, folder / name, f"{name} in {shown}", depth + 1)
        packed.unlink()
    return listing


def _damaged(shown: str, error: Exception) -> ProcessingError:
    return ProcessingError(
        f"{shown}: this archive is damaged, cut off or cannot be unpacked: {error or type(error).__name__}. "
        "Copy or download it again"
    )


@contextmanager
def _members(source: Path, shown: str) -> Iterator[list[_Member]]:
    """Open an archive and give the members to unpack, each name once."""
    with source.open("rb") as file:
        begins_as_zip = file.read(4) == b"PK\x03\x04"
    # A zip that is the last member of a tar would be found by its end. A program may stand before the content of a zip.
    if begins_as_zip or (zipfile.is_zipfile(source) and not tarfile.is_tarfile(source)):
        with zipfile.ZipFile(source) as zipped:
            yield _unique(_of_zip(zipped, shown), shown)
        return
    if not tarfile.is_tarfile(source):
        raise tarfile.ReadError("it does not begin as a zip or tar archive does")
    with tarfile.open(source) as tarred:
        yield list({member.name: member for member in _of_tar(tarred, shown)}.values())  # the last one of a name counts
        assert tarred.fileobj is not None
        while tarred.fileobj.read(2**20):  # up to the checksum at the end of a compressed archive
            pass


def _of_zip(archive: zipfile.ZipFile, shown: str) -> Iterator[_Member]:
    members = {_zip_name(member, shown): member for member in archive.infolist() if not member.is_dir()}
    for member in archive.infolist():
        name = _zip_name(member, shown)
        if member.is_dir():
            continue
        if not _is_wanted(name):
            _check_name(archive, member)
            continue
        member = _followed(archive, member, name, members, shown)
        if member.flag_bits & _ENCRYPTED:
            raise ProcessingError(
                f"{shown}: {name} is encrypted: unpack the archive with its password, for example with 7-Zip (7z x), and "
                "convert the folder"
            )
        if member.compress_type not in _READABLE_METHODS:
            method = _METHODS.get(member.compress_type, f"method {member.compress_type}")
            raise ProcessingError(
                f"{shown}: {name} is compressed with {method}, which Python cannot unpack: unpack the archive with another "
                "program, for example 7-Zip (7z x), and convert the folder"
            )
        yield _Member(name, member.file_size, member.CRC, partial(archive.open, member))


def _followed(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, members: Mapping[str, zipfile.ZipInfo], shown: str
) -> zipfile.ZipInfo:
    """Return the file that a member links to, or the member itself if it is no link."""
    at = name
    for _ in members:
        if not stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & _ENCRYPTED:
            return member
        with archive.open(member) as content:
            to = content.read(_LONGEST_LINK).decode("utf-8", "replace")
        at = posixpath.normpath(posixpath.join(posixpath.dirname(at), to))
        if at not in members:
            raise _leads_nowhere(shown, name, to)
        member = members[at]
    raise _leads_nowhere(shown, name, name)


def _check_name(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise `BadZipFile` where the two names of a file differ, because a damaged one may hide an image."""
    if not member.flag_bits & _ENCRYPTED and member.compress_type in _READABLE_METHODS:
        archive.open(member).close()


def _zip_name(member: zipfile.ZipInfo, shown: str) -> str:
    """Return the name of a member. Some programs write UTF-8 without saying so; Python then reads it as code page 437."""
    name = member.filename
    if not member.flag_bits & _UTF_8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return _checked_name(name, shown)


def _unique(members: Iterator[_Member], shown: str) -> list[_Member]:
    found: dict[str, _Member] = {}
    for member in members:
        other = found.setdefault(member.name, member)
        if (other.nbytes, other.stamp) != (member.nbytes, member.stamp):
            raise ProcessingError(
                f"{shown}: {member.name} is in the archive twice, with different content: pack it again"
            )
    return list(found.values())


def _of_tar(archive: tarfile.TarFile, shown: str) -> Iterator[_Member]:
    members = archive.getmembers()
    assert archive.fileobj is not None
    # Python takes a damaged or missing header for the end of the archive, which is at least one block of zeros.
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"there is neither a file nor the end of the archive at byte {archive.offset}")
    for member in members:
        if member.isdir() or not member.name.lower().endswith(_WANTED):
            continue
        name = _checked_name(_tar_name(member), shown)
        if not _is_wanted(name):
            continue
        try:
            content = archive.extractfile(member)  # of the target, where the member is a link
        except (KeyError, RecursionError):
            content = None
        if content is not None:
            yield _Member(name, content.seek(0, os.SEEK_END), member.mtime, partial(archive.extractfile, member))
        elif member.issym() or member.islnk():
            raise _leads_nowhere(shown, name, member.linkname)


def _tar_name(member: tarfile.TarInfo) -> str:
    """Return the name of a member. One that is not UTF-8 comes from an older system and is read as Latin-1."""
    content = member.name.encode("utf-8", "surrogateescape")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _is_wanted(name: str) -> bool:
    return name.lower().endswith(_WANTED) and not is_other(PurePosixPath(name))


def _leads_nowhere(shown: str, name: str, to: str) -> ProcessingError:
    return ProcessingError(f"{shown}: {name} is a link to {to}, which is not in the archive: pack the files themselves")


def _checked_name(name: str, shown: str) -> str:
    inside = inside_name(name)
    if inside is None:
        raise ProcessingError(f"{shown}: {name} would lie outside of the folder that the archive is unpacked to")
    return inside


def _write(member: _Member, folder: Path, shown: str) -> None:
    path = folder / member.name
    content = member.open()
    assert content is not None
    with content:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = path.open("xb")
        except (FileExistsError, NotADirectoryError):
            raise ProcessingError(
                f"{shown}: {member.name} cannot be unpacked: another file has its name, or that of one of its folders"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
                raise ProcessingError(f"{shown}: {member.name} cannot be unpacked: {error.strerror}") from None
            raise
        with target:
            shutil.copyfileobj(content, target, 2**20)
