"""Reading and writing the small files that state is kept in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError


def read_json(path: Path) -> Any:
    """The file's content; raises `UsageError` naming file and place where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise UsageError(f"{path}: this is not JSON: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON as nnU-Net does, indented by 4, atomically."""
    write_text(path, json.dumps(data, indent=4) + "\n")


def check_new(out: Path, overwrite: bool, mark: str, what: str) -> None:
    """Raise `UsageError` where the folder exists, unless it holds the file `mark` of such a result and may be replaced."""
    if out.exists() and not (overwrite and (out / mark).is_file()):
        ours = f"choose another folder, or replace the {what} with --overwrite"
        raise UsageError(f"{out}: this exists already: {ours if (out / mark).is_file() else 'choose another folder'}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `out` when all is done, and is removed where anything fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir()
        yield unfinished
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_free_space(nbytes: int, folder: Path, what: str) -> None:
    """Raise `UsageError` where the disk of `folder` has not that many bytes free."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise UsageError(
            f"{folder}: {nbytes / 2**30:.1f} GiB are needed {what} and {free / 2**30:.1f} GiB are free: make room, or "
            "point nnUNet_raw to another disk"
        )
