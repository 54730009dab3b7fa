"""Work on many cases at once, and how far it has got."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, TypeVar

from nnunet_glims.errors import UsageError

T = TypeVar("T")
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes results on as they come and shows how many there are: (results, what is done, how many there will be)."""


def available_cores() -> int:
    """How many cores this process may use, by SLURM's word or the system's."""
    allotted = os.environ.get("SLURM_CPUS_PER_TASK")
    if allotted and allotted.isdigit():
        return int(allotted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_or_default(workers: int | None) -> int:
    """How many processes the user asked for; without, a core each, at most 8. Raises `UsageError` for less than one."""
    if workers is None:
        return min(8, os.cpu_count() or 1)
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least one process is needed")
    return workers


def find_program(name: str) -> str:
    """Path of a command such as nnUNetv2_train: that of the running Python's environment, activated or not, else of PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name) or name


def quietly(results: Iterable[Any], what: str, count: int) -> Iterable[Any]:
    """Progress that is not shown."""
    return results


@contextmanager
def processes(
    workers: int, ordered: bool = True
) -> Iterator[Callable[[Callable[[Any], T], Sequence[Any]], Iterable[T]]]:
    """A function that applies another one to each of some things, in so many processes.

    Args:
        workers: how many.
        ordered: whether results come in the order of the things, or as they are done.

    Raises:
        UsageError: one of the processes was killed.
    """
    if workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:

        def each(function: Callable[[Any], T], things: Sequence[Any]) -> Iterator[T]:
            futures = [pool.submit(function, thing) for thing in things]
            for future in futures if ordered else as_completed(futures):
                yield future.result()

        try:
            yield each
        except BrokenProcessPool:
            raise UsageError(
                "a process was killed, probably for lack of memory. What is done is kept: run again with fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A process whose parent is killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
