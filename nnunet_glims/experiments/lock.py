"""Only one run of a comparison at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"


class Busy(RuntimeError):
    """Another run is at work."""

    def __init__(self, path: Path):
        holder = path.read_text(errors="replace").strip() or "?"
        super().__init__(f"Another run of this comparison is at work (process {holder})")


def is_held(file: IO) -> bool:
    """Whether another process holds the lock of an open file."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def hold(file: IO) -> bool:
    """Lock an open file until it is closed; returns whether that was possible."""
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:  # one that only looks lets go at once
            time.sleep(0.05)
    return False


def is_at_work(state: Path) -> bool:
    """Whether a run of this comparison is at work on this machine."""
    path = state / LOCK
    if not path.exists():
        return False
    with path.open("rb") as file:
        return is_held(file)


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Holds the comparison; raises `Busy` where another process does. The system lets go of it when a process dies."""
    state.mkdir(parents=True, exist_ok=True)
    path = state / LOCK
    with path.open("a+") as file:
        if not hold(file):
            raise Busy(path)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
