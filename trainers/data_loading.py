"""Data loading that says which case failed and why, in processes that end with the training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import SimpleQueue
from signal import Signals
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnunet_glims.errors import ProcessingError, UserError
from nnunet_glims.processes import end_with_parent
from nnunet_glims.trainers.stop_signals import leave_signals_to_parent

PROCESSES_VARIABLE = "nnUNet_n_proc_DA"
"""nnU-Net's environment variable with the number of data loading processes."""
_WORKERS_DIED = "One or more background workers are no longer alive"
"""How the error begins that batchgenerators' data loader raises when its processes are gone."""


def workers_died(error: BaseException) -> bool:
    """Return whether an error says that data loading processes have died, as after a signal to all processes of a job."""
    return isinstance(error, RuntimeError) and str(error).startswith(_WORKERS_DIED)


class LastCase:
    """The case that this process loaded last.

    Attributes:
        name: name of the case; empty before the first.
        folder: folder of the preprocessed data.
    """

    def __init__(self, folder: str):
        self.name = ""
        self.folder = folder

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Turn an error within this context into a `ProcessingError` that names the case."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            raise ProcessingError(
                f"case {self.name or '(none)'} of {self.folder} cannot be loaded: {reason}. If its files are damaged, "
                "preprocess the data set again"
            ) from error


class RememberingCases:
    """A data set of nnU-Net that notes which case is loaded."""

    def __init__(self, dataset: Any, last: LastCase):
        self._dataset, self._last = dataset, last
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str) -> Any:
        """Load a case, as nnU-Net's data set does."""
        self._last.name = identifier
        return self._dataset.load_case(identifier)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while the object is being unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)


class ReportingLoader:
    """nnU-Net's data loader. In a data loading process it reports errors to the training, and ends with it."""

    def __init__(self, loader: Any, last: LastCase, failures: SimpleQueue):
        self.loader = loader
        self.transforms = getattr(loader, "transforms", None)
        self._last, self._failures = last, failures

    def set_thread_id(self, number: int) -> None:
        """Take over the number of the process; batchgenerators calls this in a process that has just started."""
        leave_signals_to_parent()
        end_with_parent()
        self.loader.set_thread_id(number)

    def __next__(self) -> Any:
        try:
            with self._last.named_in_errors():
                return next(self.loader)
        except ProcessingError as error:
            self._failures.put(str(error))
            raise


class DataLoading:
    """The data loaders of a training, with or without processes.

    Attributes:
        last: the case that this process loaded last.
    """

    def __init__(self, folder: str):
        self.last = LastCase(folder)
        self._failures: SimpleQueue = SimpleQueue()
        self._loaders: list[NonDetMultiThreadedAugmenter] = []
        self._processes: list[Any] = []

    def without_processes(self, loader: SingleThreadedAugmenter) -> SingleThreadedAugmenter:
        """Return a loader that works in this process."""
        return SingleThreadedAugmenter(ReportingLoader(loader.data_loader, self.last, self._failures), loader.transform)

    def with_processes(
        self,
        loader: SingleThreadedAugmenter,
        processes: int,
        cached: int,
        seeds: Sequence[int] | None,
        pin_memory: bool,
    ) -> NonDetMultiThreadedAugmenter:
        """Return a loader whose processes have started.

        Args:
            loader: a loader that works in this process.
            processes: number of processes.
            cached: number of batches to keep ready.
            seeds: seeds of the processes; None for random ones.
            pin_memory: whether batches are put into memory from which a GPU copies faster.
        """
        found = NonDetMultiThreadedAugmenter(
            ReportingLoader(loader.data_loader, self.last, self._failures),
            loader.transform,
            processes,
            num_cached=cached,
            seeds=seeds,
            pin_memory=pin_memory,
            wait_time=0.002,
        )
        found.restart()
        self._loaders.append(found)
        self._processes += found._processes
        return found

    def finish(self) -> None:
        """End all processes. Without this, batchgenerators complains about their end after the training's own error."""
        for loader in self._loaders:
            loader._finish()

    def failure(self) -> ProcessingError:
        """Return the error that says why data loading processes have died."""
        if not self._failures.empty():
            return ProcessingError(self._failures.get())
        codes = [process.exitcode for process in self._processes if process.exitcode not in (None, 0)]
        # batchgenerators itself ends the remaining processes by SIGTERM.
        code = next((code for code in codes if code != -Signals.SIGTERM), codes[0] if codes else 0)
        how = f"was killed by {Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ProcessingError(
            f"a data loading process {how}. If memory ran out, use fewer of them ({PROCESSES_VARIABLE}=2). Checkpoints are "
            "kept: with --c the training goes on"
        )


@contextmanager
def no_data_loading_processes() -> Iterator[None]:
    """Within this context, nnU-Net makes data loaders without processes."""
    before = os.environ.get(PROCESSES_VARIABLE)
    os.environ[PROCESSES_VARIABLE] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PROCESSES_VARIABLE]
        else:
            os.environ[PROCESSES_VARIABLE] = before
