"""The lock of this package: one process at a time does a thing, and the others learn who does it.

The lock is the system's own where the file system has locks: a killed process loses it at once. Lustre without `-o flock` and
some NFS servers have none. There a file stands for the lock; one that a dead process of this machine left is removed.
"""

from __future__ import annotations

import contextlib
import errno
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
from nnunet_glims.files import read_json, write_json

try:
    import fcntl
except ImportError:  # Windows: filelock takes msvcrt's locks, which every file system there has
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = {getattr(errno, name) for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL")}
"""What file systems without locks answer: Lustre ENOSYS, NFS without its lock service ENOLCK, FUSE the others."""
SECONDS_TO_WAIT = 0.5
"""A process that only looks whether the lock is held lets go of it at once."""


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one that has the same number.

    Attributes:
        host: name of the machine.
        pid: its number there.
        started: when the system started it, as the system writes it; empty where that is not known.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process of this machine that has the number now."""
        return cls(socket.gethostname(), pid, _started(pid))

    @property
    def is_here(self) -> bool:
        """Whether it is or was a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it runs on this machine."""
        if not self.is_here:
            return False
        started = _started(self.pid)
        return bool(started) and started == self.started


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        process: the process.
        since: seconds since 1970.
        slurm_job: number of the SLURM job that the process belongs to; empty outside of SLURM.
    """

    process: Process
    since: float
    slurm_job: str

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.process.pid} on {self.process.host}, since {since}"


class LockHeld(ProcessingError):
    """Another process holds the lock.

    Attributes:
        holder: who it is; None where that is not known yet.
    """

    def __init__(self, what: str, holder: Holder | None):
        super().__init__(f"{what}: another process does this already ({holder or 'it does not say which'})")
        self.holder = holder


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs. The folder of the lock's file is made where it is missing.

    Args:
        path: of the lock's file; who holds the lock stands beside it, in NAME.holder.
        what: names what is locked in the error.

    Raises:
        LockHeld: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    described = path.with_name(f"{path.name}.holder")
    held = _acquired(path, described, what)
    try:
        holder = Holder(Process.of(os.getpid()), time.time(), os.environ.get("SLURM_JOB_ID", ""))
        write_json(described, asdict(holder))
        yield
    finally:
        described.unlink(missing_ok=True)
        held.release()


def holder_of(path: Path) -> Holder | None:
    """Who holds a lock; None where nobody does. A process of another machine counts as long as it holds the lock."""
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


def _acquired(path: Path, described: Path, what: str) -> BaseFileLock:
    found: BaseFileLock = FileLock(path, timeout=SECONDS_TO_WAIT) if _has_locks(path) else _soft_lock(path, described)
    try:
        found.acquire(poll_interval=0.05)
    except Timeout:
        holder = _described(described)
        if holder is None and _soft(path).exists():
            what = f"{what} (delete {_soft(path)} if no process does this any more)"
        raise LockHeld(what, holder) from None
    return found


def _has_locks(path: Path) -> bool:
    """Whether the file system of the lock's file has locks, found out by asking for a shared one."""
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
    """The lock by a file's existence, without that of a process that is dead or was this SLURM job's before it was requeued."""
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
        return Holder(Process(**content["process"]), content["since"], content["slurm_job"])
    return None


def _started(pid: int) -> str:
    """When the system started a process; empty where there is none, or where it has ended and waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    try:
        found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # Windows: only the number is known
        return str(pid)
    return found.stdout.strip()
