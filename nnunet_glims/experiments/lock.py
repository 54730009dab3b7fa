"""Only one run of a comparison at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class Busy(RuntimeError):
    """Another run is at work."""

    def __init__(self, path: Path):
        self.path = path
        holder = path.read_text(errors="replace").strip() or "?"
        super().__init__(f"Another run of this comparison is at work (process {holder})")

    def is_over(self) -> bool:
        """Whether it has ended."""
        with self.path.open("rb") as file:
            return not is_held(file)


def is_held(file: IO) -> bool:
    """Whether another process holds the lock of an open file."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Holds the comparison; raises `Busy` where another process does. The system lets go of it when a process dies."""
    state.mkdir(parents=True, exist_ok=True)
    path = state / "run.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(path) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
