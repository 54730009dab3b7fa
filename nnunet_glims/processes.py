"""The cores and memory that this process may use, the search for programs, and work in several processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from math import ceil
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from nnunet_glims.errors import ProcessingError, UsageError

T = TypeVar("T")
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Function (results, name of the work, expected number) that yields the results unchanged and shows how many there are."""


MOST_WORKERS = 8
MEMORY_PER_WORKER = 2**30
"""Bytes that a process with NumPy, SimpleITK and a case of a few million voxels may need."""


def available_cores(root: Path = Path("/")) -> int:
    """Return how many processor cores this process may use.

    This is the smallest of what the machine has, what the process is bound to, the processor time that control groups
    (containers, services) grant, and what SLURM allotted to the task.

    Args:
        root: folder that stands for the root of the file system; tests give another one.
    """
    bound_to = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allotted = _slurm_number("SLURM_CPUS_PER_TASK") or _slurm_number("SLURM_CPUS_ON_NODE")
    limits = [bound_to, *_processor_quotas(root), *([allotted] if allotted else [])]
    return max(1, int(min(limits)))


def available_memory(root: Path = Path("/")) -> float:
    """Return how many bytes of memory this process may use; infinite where the system does not say.

    This is the smallest of the machine's memory, the limits of control groups (containers, services, SLURM), and what
    SLURM's variables say.

    Args:
        root: folder that stands for the root of the file system; tests give another one.
    """
    try:
        machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows
        machine = float("inf")
    limits = [machine, *_memory_limits(root)]
    if of_node := _slurm_number("SLURM_MEM_PER_NODE"):
        limits.append(of_node * 2**20)
    elif of_core := _slurm_number("SLURM_MEM_PER_CPU"):
        cores = _slurm_number("SLURM_CPUS_ON_NODE") or _slurm_number("SLURM_CPUS_PER_TASK") or 1
        limits.append(of_core * cores * 2**20)
    return min(limits)


def _slurm_number(variable: str) -> int:
    """Return the number in one of SLURM's variables; 0 if it is not set or not a number. For memory, SLURM's 0 means all."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else 0


def _processor_quotas(root: Path) -> Iterator[float]:
    """Yield the number of cores that each control group of this process and each above it may use, rounded up.

    The files hold a quota and a period of time. Without a quota, version 2 says "max" and version 1 says -1.
    """
    for folder in _control_groups(root, "cpu"):
        of_version_1 = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        words = _words(folder / "cpu.max") or of_version_1
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
            yield ceil(int(words[0]) / int(words[1]))


def _memory_limits(root: Path) -> Iterator[float]:
    """Yield the bytes of memory that each control group of this process and each above it may use.

    Without a limit, version 2 says "max" and version 1 a number larger than any memory.
    """
    for folder in _control_groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = "".join(_words(folder / name))
            if limit.isdecimal():
                yield float(limit)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process' control groups for a controller, and of their parents up to the mount point.

    Inside a container /proc may name folders of the machine that are not mounted; then only the mounted folder exists.
    """
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            tops = [mounted, mounted / "unified"]
        elif controller in controllers.split(","):
            tops = [mounted / controllers, mounted / controller]
        else:
            continue
        for top in tops:
            folder = top / group.lstrip("/")
            yield from (above for above in (folder, *folder.parents) if above == top or top in above.parents)


def _words(file: Path) -> list[str]:
    """Return the words of a small file; an empty list if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []


def workers_or_default(workers: int | None) -> int:
    """Return how many processes to start: what the user asked for, else as many as cores and memory allow, at most 8.

    Raises:
        UsageError: the user asked for fewer than one.
    """
    if workers is None:
        room = min(available_cores(), available_memory() // MEMORY_PER_WORKER, MOST_WORKERS)
        return max(1, int(room))
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least one process is needed")
    return workers


def check_process_control(what: str) -> None:
    """Raise `UsageError` on Windows, and on macOS before Python 3.13: they cannot stop a command together with its children.

    Args:
        what: the command that needs this, for the message.
    """
    if not hasattr(os, "killpg") or not hasattr(os, "waitid"):
        raise UsageError(
            f"{what}: this needs Linux, or macOS with Python 3.13, since it stops trainings by functions of the system that "
            "are missing here. On Windows, use the Windows Subsystem for Linux"
        )


def find_program(name: str) -> str:
    """Return the path of a command such as nnUNetv2_train.

    The command is searched in the environment of the running Python, activated or not, then in PATH. If it is in neither,
    the name is returned unchanged.
    """
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name) or name


def quietly(results: Iterable[Any], what: str, count: int) -> Iterable[Any]:
    """Return the results unchanged: the function for `progress` that shows nothing."""
    return results


@contextmanager
def processes(
    workers: int, ordered: bool = True
) -> Iterator[Callable[[Callable[[Any], T], Sequence[Any]], Iterable[T]]]:
    """Give a function like `map` that works in several processes and yields results as soon as they are available.

    Args:
        workers: number of processes; with one, the work is done in this process.
        ordered: yield results in the order of the inputs; otherwise in the order in which they are finished.

    Raises:
        ProcessingError: one of the processes was killed.
    """
    if workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent) as pool:

        def apply(function: Callable[[Any], T], things: Sequence[Any]) -> Iterator[T]:
            with _ctrl_c_held_back():
                futures = [pool.submit(function, thing) for thing in things]
            for future in futures if ordered else as_completed(futures):
                yield future.result()

        try:
            yield apply
        except BrokenProcessPool:
            raise ProcessingError(
                "a worker process was killed, probably because memory ran out. Results written so far are kept: run the "
                "command again with fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Receive Ctrl-C when the block has ended. Processes that are started in it never do.

    Until a worker can ignore Ctrl-C itself, it imports for seconds, and would show a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent() -> None:
    """Ignore Ctrl-C in a worker, because the parent receives it too; end the worker when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
