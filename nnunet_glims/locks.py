"""Locks between processes: one process at a time does something, and the others learn who does it, and since when.

On file systems with locks the operating system's lock is used, which a killed process loses at once. Lustre without
`-o flock` and some NFS servers have no locks. There, the existence of a file is the lock; a file that a dead process of this
machine left is removed.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from nnunet_glims.errors import ProcessingError
from nnunet_glims.files import read_json, unwritable, write_json

try:
    import fcntl
except ImportError:  # Windows: filelock uses msvcrt's locks, which all file systems there have
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = {getattr(errno, name) for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL")}
"""Errors of file systems without locks: ENOSYS from Lustre, ENOLCK from NFS without lock service, the others from FUSE."""
SECONDS_TO_WAIT = 0.5
"""Seconds. A process that only checks whether the lock is held releases it at once."""


@dataclass(frozen=True)
class Process:
    """A process, which is distinguished from a later process with the same number.

    Attributes:
        host: name of the machine.
        pid: number of the process on that machine.
        started: start time in the notation of the operating system; empty if it is not known.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has this number on this machine now."""
        return cls(socket.gethostname(), pid, _started(pid))

    @property
    def is_here(self) -> bool:
        """Whether the process is or was one of this machine."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs on this machine."""
        if not self.is_here:
            return False
        started = _started(self.pid)
        return bool(started) and started == self.started


@dataclass(frozen=True)
class Holder:
    """The holder of a lock.

    Attributes:
        process: the process that holds the lock.
        since: when it took the lock, in seconds since 1970.
        slurm_job: number of the SLURM job that the process belongs to; empty outside of SLURM.
        user: name of the user who runs the process; empty if it is not known.
    """

    process: Process
    since: float
    slurm_job: str
    user: str = ""

    @classmethod
    def here(cls) -> Holder:
        """Return this process as the holder of a lock that it takes now."""
        return cls(Process.of(os.getpid()), time.time(), os.environ.get("SLURM_JOB_ID", ""), user_name())

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M:%S")
        user = f"user {self.user}, " if self.user else ""
        return f"{user}process {self.process.pid} on {self.process.host}, since {since}"


class LockHeld(ProcessingError):
    """Another process holds the lock.

    Attributes:
        holder: the holder of the lock; None if it is not known yet.
    """

    def __init__(self, what: str, holder: Holder | None):
        who = holder or "it does not say which"
        super().__init__(f"{what}: another process does this already ({who}): wait until it has ended")
        self.holder = holder


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs. The folder of the lock's file is created if it does not exist.

    Args:
        path: path of the lock's file. The file NAME.holder in the same folder describes the holder.
        what: how the error message names what is locked.

    Raises:
        LockHeld: another process holds the lock.
        ProcessingError: the file cannot be written, for example because the disk is full or the folder is another user's.
    """
    described = path.with_name(f"{path.name}.holder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _acquired(path, described, what)
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error
    try:
        write_json(described, asdict(Holder.here()))
        yield
    finally:
        described.unlink(missing_ok=True)
        held.release()


def holder_of(path: Path) -> Holder | None:
    """Return the holder of a lock; None if nobody holds it. A process of another machine counts while it holds the lock."""
    if not path.exists() and not _soft(path).exists():
        return None
    holder = _described(path.with_name(f"{path.name}.holder"))
    if holder is None or holder.process.is_here:
        return holder if holder is not None and holder.process.is_alive else None
    if _soft(path).exists():
        return holder
    try:
        with FileLock(path, timeout=0):
            return None
    except Timeout:
        return holder
    except (OSError, NotImplementedError):  # a file system without locks, where no file is the lock
        return None


def _acquired(path: Path, described: Path, what: str) -> BaseFileLock:
    found: BaseFileLock = FileLock(path, timeout=SECONDS_TO_WAIT) if _has_locks(path) else _soft_lock(path, described)
    try:
        found.acquire(poll_interval=0.05)
    except Timeout:
        holder = _described(described)
        if _soft(path).exists() and (holder is None or not holder.process.is_here):
            what = f"{what} (delete {_soft(path)} if no process does this any more)"
        raise LockHeld(what, holder) from None
    return found


def _has_locks(path: Path) -> bool:
    """Return whether the file system of the lock's file has locks, by asking for a shared lock."""
    if fcntl is None:
        return True
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    finally:
        os.close(descriptor)
    return True


def _soft(path: Path) -> Path:
    return path.with_name(f"{path.name}.soft")


def _soft_lock(path: Path, described: Path) -> SoftFileLock:
    """Return a lock by a file's existence, after removing a file that is left from a dead process.

    A process of the same SLURM job before it was requeued counts as dead, too.
    """
    holder = _described(described)
    if holder is not None:
        own = os.environ.get("SLURM_JOB_ID", "")
        dead = holder.process.is_here and not holder.process.is_alive
        requeued = bool(own) and holder.slurm_job == own and not holder.process.is_alive
        if dead or requeued:
            _soft(path).unlink(missing_ok=True)
    return SoftFileLock(_soft(path), timeout=SECONDS_TO_WAIT)


def _described(path: Path) -> Holder | None:
    with contextlib.suppress(ValueError, TypeError, KeyError, OSError):
        content = read_json(path)
        return Holder(Process(**content["process"]), content["since"], content["slurm_job"], content.get("user", ""))
    return None


def user_name() -> str:
    """Return the name of the user, or the number where the system has no name for it, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def _started(pid: int) -> str:
    """Return when a process was started; an empty text if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    try:
        found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # Windows: only the number of the process is known
        return str(pid)
    return found.stdout.strip()
