"""Write files and folders so that they are complete or do not exist.

Results are first written to a hidden working folder `.NAME.RANDOM.tmp` in the folder where they belong. The complete result
is synced to the disk and renamed to its final name. A process that is killed at any moment therefore leaves either the old
or the new file, and possibly a working folder. The next process that writes the same result removes such a folder, unless a
living process holds the lock in it.

A folder cannot be replaced by one rename on every system. An old folder is therefore first renamed to
`.NAME.RANDOM.replaced`. A process that is killed before the new folder is at its place leaves the old one under that name,
and the next process that writes the same result renames it back before it does anything else.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_glims.documents import MOST_BYTES_OF_JSON, MOST_BYTES_OF_YAML, Document, parse_json, parse_yaml
from nnunet_glims.errors import ProcessingError, UsageError, UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, working folders of killed processes are not removed
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".tmp"
_LOCK = ".working.lock"
_REPLACED = ".replaced"
"""Ends the name of an old folder from the moment it is moved away to the moment the new one has taken its place."""
_UNLOCKED = ".new"
"""End of a working folder's name until the folder is locked."""
_WORKING = re.compile(rf"\.(.+)\.[^.]+({re.escape(_SUFFIX)}|{re.escape(_UNLOCKED)})", re.DOTALL)
"""Name of a working folder; the random part has no dots."""
_LOCK_ATTEMPTS = 30
_UNLOCKED_SECONDS = 60
"""Age in seconds from which a folder of this name counts as left by a killed process, where its place cannot be locked."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that takes no more, whatever file they name."""


def read_text(path: Path, most_bytes: int = MOST_BYTES_OF_JSON, error: type[UserError] = UsageError) -> str:
    """Return the content of a text file in UTF-8, with or without a byte order mark.

    Args:
        path: path of the file.
        most_bytes: largest size of the file.
        error: class of the errors about the content.

    Raises:
        UsageError: there is no such file, or it is a folder or a device.
        UserError: of the class `error`: the file is larger than `most_bytes`, is not text in UTF-8, or cannot be read.
    """
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r}: a path has no null characters")
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path}: this is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
            raise UsageError(f"{path}: this is a pipe or a device, not a file")
        if status.st_size > most_bytes:
            raise error(
                f"{path}: this file has {status.st_size:,} bytes, and such a file may have {most_bytes:,}: it is another file "
                "than is wanted here"
            )
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: there is no such file") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        raise error(f"{path}: this text is in UTF-16 or UTF-32: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}:{line}: this is no text in UTF-8 (byte {problem.start}: {problem.reason})") from None


def read_json_document(path: Path, error: type[UserError] = UsageError, nan_allowed: bool = False) -> Document:
    """Read a JSON file with the lines of its values; see `read_text` and `documents.parse_json` for errors and limits."""
    return parse_json(read_text(path, MOST_BYTES_OF_JSON, error), str(path), error, nan_allowed)


def read_yaml_document(path: Path, error: type[UserError] = UsageError) -> Document:
    """Read a YAML file with the lines of its values; see `read_text` and `documents.parse_yaml` for errors and limits."""
    return parse_yaml(read_text(path, MOST_BYTES_OF_YAML, error), str(path), error)


def read_json(path: Path, error: type[UserError] = UsageError, nan_allowed: bool = False) -> Any:
    """Return the content of a JSON file, whose form is not known; `validation.read_model` also checks the form.

    Args:
        path: path of the file.
        error: class of the errors about the content: `UsageError` for what users write, `ProcessingError` for results.
        nan_allowed: whether NaN and Infinity are allowed, as in nnU-Net's summary.json.

    Raises:
        UsageError: there is no such file, or it is a folder.
        UserError: of the class `error`: the file cannot be read, is too large, is not JSON, is nested too deeply, has a
            key twice or a number that is not finite. The message names file and line.
    """
    return read_json_document(path, error, nan_allowed).content


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `new_file` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write JSON as nnU-Net does, indented by 4, as `new_file` does."""
    write_text(path, json.dumps(data, indent=4) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, as `new_file` does."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path to write a file to, and move the file to its place when the block ends without an error.

    The temporary path has the same name in another folder, so that libraries know the format by the name's ending. An
    older file is replaced.

    Raises:
        ProcessingError: the disk is full, or the file cannot be written for another reason of the file system.
    """
    with working_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder to fill, and move it to its place when the block ends without an error.

    Missing parents of `out` are made. An older folder is replaced: callers check before whether it may be (`check_new`).

    Raises:
        ProcessingError: the disk is full, or the folder cannot be written for another reason of the file system.
    """
    make_folder(out.parent)
    with working_folder(out) as folder:
        is_new = not out.exists()
        temporary = folder / out.name
        temporary.mkdir()
        yield temporary
        if is_new:
            try:
                move_folder(temporary, out)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise ProcessingError(
                    f"{out}: another process has written this meanwhile. Its result is kept"
                ) from None
            return
        sync_tree(temporary)
        out.rename(folder.with_suffix(_REPLACED))
        try:
            temporary.rename(out)
        finally:
            _remove_or_put_back(folder.with_suffix(_REPLACED), out)
        sync(out.parent)


@contextmanager
def working_folder(place: Path) -> Iterator[Path]:
    """Make a hidden folder beside `place` that no other process uses, and remove it however the block ends.

    Working folders that killed processes left for the same place are removed first.

    Raises:
        ProcessingError: the disk is full or read-only, or the file system reports another error about `place` or the
            working folder, here or in the block. Errors about other files are passed on.
    """
    folder, descriptor = None, None
    try:
        remove_leftovers(place)
        try:
            with _parent_locked(place.parent):
                folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=_UNLOCKED, dir=place.parent))
                descriptor = _lock(folder)
                folder = folder.rename(folder.with_name(folder.name.removesuffix(_UNLOCKED) + _SUFFIX))
            yield folder
        finally:
            if descriptor is not None:
                os.close(descriptor)  # before the removal: NFS keeps the folder of a file that is open
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        ours = (str(place.absolute()), str(place.parent.absolute() / f".{place.name}."))
        named = [os.path.abspath(name) for name in (error.filename, error.filename2) if isinstance(name, (str, Path))]
        is_ours = any(name == ours[0] or name.startswith(ours[1]) for name in named)
        if error.errno is None or (named and not is_ours and error.errno not in DISK_ERRORS):
            raise  # errors of write and fsync name no file
        raise unwritable(place, error.strerror or str(error)) from error


def remove_leftovers(place: Path) -> None:
    """Remove the working folders for this place whose processes were killed; put back an old folder they moved away."""
    _remove_dead(place.parent, place.name)


def remove_leftovers_below(folder: Path) -> None:
    """Do what `remove_leftovers` does for every place in a folder and in those below it."""
    for inside, _, _ in os.walk(folder):
        _remove_dead(Path(inside))


def _remove_dead(folder: Path, wanted: str | None = None) -> None:
    """Remove the working folders of killed processes in a folder: all, or those for the place of the name `wanted`."""
    try:
        names = [] if fcntl is None else os.listdir(folder)
    except OSError:  # there is no such folder, or it cannot be read
        return
    matches = [match for name in names if (match := _WORKING.fullmatch(name)) and wanted in (None, match[1])]
    for match in matches:
        path = folder / match[0]
        with contextlib.suppress(OSError):  # a living process holds the lock, the folder is gone, or there are no locks
            if path.name.endswith(_UNLOCKED):
                with _parent_locked(folder) as is_locked:  # then no living process has a folder in this state
                    if is_locked or time.time() - path.stat().st_mtime > _UNLOCKED_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
            else:
                descriptor = os.open(path / _LOCK, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                finally:
                    os.close(descriptor)
                _remove_or_put_back(path.with_suffix(_REPLACED), folder / match[1])
                shutil.rmtree(path, ignore_errors=True)


def unwritable(place: Path, reason: str) -> ProcessingError:
    """Return the error for a file or folder that could not be written; it names the disk and its free bytes."""
    disk = place.parent.absolute()
    while not os.path.exists(disk) or not (os.path.ismount(disk) or disk == disk.parent):
        disk = disk.parent
    room = ""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(disk).free
        room = f" The disk {disk} has {free:,} bytes ({free / 2**30:.1f} GiB) free."
    return ProcessingError(
        f"{place}: cannot be written: {reason}.{room} What was there before is unchanged: make room or choose another folder, "
        "and run the command again"
    )


def make_folder(folder: Path) -> None:
    """Make a folder and the missing ones above it; raise `ProcessingError` that names it if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error.strerror or str(error)) from error


def move_folder(folder: Path, place: Path) -> None:
    """Sync a folder and its whole content to the disk, then rename it to a path that does not exist."""
    sync_tree(folder)
    folder.rename(place)
    sync(place.parent)


def sync_tree(folder: Path) -> None:
    """Wait until the disk has a folder and everything below it."""
    for inside, _, names in os.walk(folder):
        for name in names:
            path = Path(inside, name)
            if not path.is_symlink():
                sync(path)
        sync(Path(inside))


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's entries where the system can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders; files may be readable by their owner only
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # the file system cannot sync this
            raise
    finally:
        os.close(descriptor)


def check_output_folder(out: Path, inputs: Sequence[Path] = ()) -> None:
    """Raise `UsageError` where a file has the name of the folder or of one above, or where it is or lies in one of `inputs`.

    Working folders that killed processes left for the same place, or inside of it, are removed.
    """
    for place in (out, *out.parents):
        if os.path.exists(place) and not os.path.isdir(place):
            raise UsageError(f"{place}: this is a file, and the results need a folder: choose another name")
    real = Path(os.path.realpath(out))
    if around := [one for one in inputs if Path(os.path.realpath(one)) in (real, *real.parents)]:
        raise UsageError(f"{out}: results would lie among what is read from {around[0]}: choose a folder outside of it")
    remove_leftovers(out)
    _remove_dead(out)


def check_output_file(out: Path) -> None:
    """Raise `UsageError` where no file of this path can be written because it is a folder, or none is there to write it to.

    Working folders that killed processes left for the same place are removed.
    """
    if os.path.isdir(out):
        raise UsageError(f"{out}: this is a folder, and a file is to be written: choose another name")
    if not os.path.isdir(out.parent):
        raise UsageError(f"{out.parent}: there is no such folder to write {out.name} to")
    remove_leftovers(out)


def check_new(out: Path, overwrite: bool, mark: str, what: str) -> None:
    """Raise `UsageError` where the folder exists, unless it holds the file `mark` of such a result and may be replaced.

    Working folders that killed processes left for the same place are removed, also where the result was complete.
    """
    if not os.path.exists(out):
        check_output_folder(out)
    remove_leftovers(out)
    if os.path.exists(out) and not (overwrite and (out / mark).is_file()):
        ours = f"choose another folder, or replace the {what} with --overwrite"
        raise UsageError(f"{out}: this exists already: {ours if (out / mark).is_file() else 'choose another folder'}")


def check_free_space(nbytes: int, folder: Path, what: str) -> None:
    """Raise `ProcessingError` if the disk of `folder` has fewer free bytes than `nbytes`; `what` names what needs them."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise ProcessingError(
            f"{folder}: {nbytes / 2**30:.1f} GiB are needed {what} and {free / 2**30:.1f} GiB are free: make room, or "
            "point nnUNet_raw to another disk"
        )


def _remove_or_put_back(replaced: Path, place: Path) -> None:
    """Remove an old folder that was moved away where there is a new one, else put it back to its place."""
    if place.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(place)


@contextmanager
def _parent_locked(folder: Path) -> Iterator[bool]:
    """Lock a folder in which working folders are made, for a moment; give False where the file system cannot do that."""
    descriptor, is_locked = None, False
    try:
        with contextlib.suppress(OSError):
            descriptor = None if fcntl is None else os.open(folder, os.O_RDONLY)
        for attempt in range(_LOCK_ATTEMPTS):
            if descriptor is None:
                break
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_locked = True
                break
            except BlockingIOError:
                time.sleep(0.01 * (attempt + 1))
            except OSError:  # this file system cannot lock folders
                break
        yield is_locked
    finally:
        if descriptor is not None:
            if is_locked:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for processes that were forked meanwhile
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Lock a working folder until the descriptor is closed or the process ends; None where there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):  # without locks, others do not remove the folder either
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor
