"""Work on many cases at once, and how far it has got."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from nnunet_glims.errors import UsageError

T = TypeVar("T")
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes results on as they come and shows how many there are: (results, what is done, how many there will be)."""


def workers_or_default(workers: int | None) -> int:
    """How many processes the user asked for; without, a core each, at most 8. Raises `UsageError` for less than one."""
    if workers is None:
        return min(8, os.cpu_count() or 1)
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least one process is needed")
    return workers


def quietly(results: Iterable[Any], what: str, count: int) -> Iterable[Any]:
    """Progress that is not shown."""
    return results


@contextmanager
def processes(workers: int) -> Iterator[Callable[[Callable[[Any], T], Sequence[Any]], Iterable[T]]]:
    """A function that applies another one to each of some things, in so many processes."""
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
