"""Run a comparison's jobs on this machine: one at a time on each GPU, or one at a time without GPUs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import submitit

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.executors.base import Executor, Tell
from nnunet_glims.experiments.executors.step import ATTEMPTS, Step, share_of, stop
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.jobs.base import Job
from nnunet_glims.processes import available_cores

POLL_SECONDS = 0.5
_FOLDER_OF_A_RUN = re.compile(r"\d+-\d+")
"""Names of the folders that runs make for submitit's files: the time and the number of the process."""
YEARS_IN_MINUTES = 10 * 365 * 24 * 60

_CLASS_OF_AN_ERROR = re.compile(r"^nnunet_glims\.[\w.]+: ")
"""How the last line of a traceback begins when a trainer of this package has raised the error."""


@dataclass
class _Running:
    """A running job.

    Attributes:
        job: the job.
        handle: submitit's handle; None for a job that an earlier run started and that is still running.
        slot: index of the slot (GPU) that the job occupies.
        attempt: how often this run has started the job.
    """

    job: Job
    handle: submitit.Job | None
    slot: int
    attempt: int

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended. A training may outlive the process that started it."""
        if self.handle is not None and not self.handle.done():
            return False
        folder = self.job.folder
        return not folder.is_at_work(folder.read())


class Local(Executor):
    """Runs jobs on this machine and waits for them.

    Attributes:
        parallel: number of jobs that run at the same time; None means one for each GPU, or one without GPUs.
    """

    name: ClassVar[str] = "local"

    def __init__(self, experiment: Experiment, parallel: int | None = None):
        super().__init__(experiment)
        self.parallel = parallel

    def submit(self, jobs: Sequence[Job], tell: Tell) -> list[str]:
        """Run all jobs whose needs can be met; see `Executor.submit`. On Ctrl-C and SIGTERM trainings save and end."""
        if not hasattr(os, "killpg"):
            raise UsageError("comparisons run on Linux and macOS alone: on Windows use the Windows Subsystem for Linux")
        return _Run(self.experiment, jobs, tell, self.parallel).run()

    def states(self) -> dict[str, str]:
        """Return the state RUNNING for each job whose job.json names a living process."""
        jobs = self.experiment.layout.state / "jobs"
        found = {}
        for path in jobs.iterdir() if jobs.is_dir() else ():
            folder = self.experiment.layout.job(path.name)
            if folder.is_at_work(folder.read()):
                found[path.name] = "RUNNING"
        return found

    def cancel(self, jobs: Sequence[Job], tell: Tell) -> None:
        """Stop running jobs; see `Executor.cancel`."""
        for job in jobs:
            job.folder.request_cancel()
        stop([job.folder for job in jobs], tell=tell)


class _Run:
    """One call of `Local.submit`: the jobs that wait and those that run."""

    def __init__(self, experiment: Experiment, jobs: Sequence[Job], tell: Tell, parallel: int | None):
        self.experiment, self._tell = experiment, tell
        self.devices = _devices(experiment)
        self.slots = list(range(parallel or experiment.layout.comparison.parallel or len(self.devices) or 1))
        self._remove_leftovers()
        self.folder = experiment.layout.submitit / f"{time.time():.0f}-{os.getpid()}"
        self.executor = submitit.LocalExecutor(self.folder)
        self.executor.update_parameters(timeout_min=YEARS_IN_MINUTES)
        share = share_of(max(1, available_cores() // len(self.slots)))
        # Variables that the user has set are kept. A job that runs alone gets all cores.
        self.share = {} if len(self.slots) == 1 else {name: share[name] for name in share if name not in os.environ}
        self.running: list[_Running] = []
        self.attempts: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        experiment.look_again()
        self.chosen = {job.name for job in jobs}
        self.done = {name for name, job in experiment.jobs.items() if experiment.is_done(job)}
        self.waiting = [job for job in jobs if job.name not in self.done]

    def tell(self, text: str) -> None:
        """Tell the user something. A terminal that has been closed does not end the run."""
        with contextlib.suppress(OSError, SystemExit):  # rich ends the process when a pipe has been closed
            self._tell(text)

    def _remove_leftovers(self) -> None:
        """Remove submitit's files of earlier runs, unless a job that such a run started is still at work."""
        folder = self.experiment.layout.submitit
        found = [path for path in folder.glob("*-*") if _FOLDER_OF_A_RUN.fullmatch(path.name)]
        if found and not any(job.folder.is_at_work(job.folder.read()) for job in self.experiment.jobs.values()):
            for path in found:
                shutil.rmtree(path, ignore_errors=True)

    def run(self) -> list[str]:
        """Run the jobs; return the names of those that failed."""
        counts = f"{len(self.done)} of {len(self.experiment.jobs)} jobs are done, {len(self.waiting)} to do"
        self.tell(f"{counts}, {len(self.slots)} at a time")
        try:
            with _signals_handled((signal.SIGTERM, signal.SIGHUP), signal.default_int_handler):  # stopped as on Ctrl-C
                while self.waiting or self.running:
                    for one in [one for one in self.running if one.has_ended]:
                        self.running.remove(one)
                        self._end(one)
                    self._start_what_can_be()
                    if not self.running and self.waiting:  # the remaining jobs need others that were not selected
                        break
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self.tell("stopping: trainings save what they have")
            asked: set[int] = set()
            while any(not one.has_ended for one in self.running):
                stop([one.job.folder for one in self.running], asked, self.tell)
                time.sleep(POLL_SECONDS)
            raise
        if not self.failed:
            shutil.rmtree(self.folder, ignore_errors=True)
        return list(self.failed)

    def _end(self, one: _Running) -> None:
        job = one.job
        self.experiment.look_again()
        if self.experiment.is_done(job):
            self.done.add(job.name)
            self.tell(f"{job.name}: done")
            for other in self.experiment.jobs.values():  # their results were made from the old result
                if (
                    other.name in self.done & self.chosen
                    and job.name in other.needs
                    and not self.experiment.is_done(other)
                ):
                    self.done.discard(other.name)
                    self.waiting.append(other)
        elif one.handle is None or (_goes_on(job) and one.attempt < ATTEMPTS):
            self.tell(f"{job.name}: was interrupted, goes on")
            self.waiting.insert(0, job)
        else:
            self.failed[job.name] = _reason(job, one.handle)
            self.tell(f"{job.name}: {self.failed[job.name]}")

    def _start_what_can_be(self) -> None:
        for job in list(self.waiting):
            if any(need in self.failed for need in job.needs):
                self.failed[job.name] = "not started, since it needs what failed"
                self.waiting.remove(job)
            elif len(self.running) < len(self.slots) and all(need in self.done for need in job.needs):
                self.waiting.remove(job)
                self._start(job)

    def _start(self, job: Job) -> None:
        slot = next(slot for slot in self.slots if slot not in {other.slot for other in self.running})
        folder = job.folder
        if folder.is_at_work(folder.read()):
            self.tell(f"{job.name}: was started before and is still running")
            self.running.append(_Running(job, None, slot, 1))
            return
        outcome = job.outcome()
        if outcome.state in ("refused", "unrecorded"):
            self.failed[job.name] = f"refused: {outcome.change or 'nothing says what its result was made from'}"
            self.tell(f"{job.name}: {self.failed[job.name]}")
            return
        self.attempts[job.name] = self.attempts.get(job.name, 0) + 1
        gpus = {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]} if self.devices else {}
        folder.cancel_file.unlink(missing_ok=True)
        # A terminal sends these signals to all processes; the started one ignores them, and the runner stops it itself.
        with _signals_handled((signal.SIGINT, signal.SIGHUP), signal.SIG_IGN):
            handle = self.executor.submit(Step(job, Local.name, environment={**self.share, **gpus}))
        self.tell(f"{job.name}: started")
        self.running.append(_Running(job, handle, slot, self.attempts[job.name]))


def _goes_on(job: Job) -> bool:
    """Return whether the job was killed or stopped without having been cancelled, so that it is to be continued."""
    if job.folder.is_cancelled:
        return False
    record = job.folder.read()
    return record is not None and record.ending in (None, "stopped")


def _reason(job: Job, handle: submitit.Job) -> str:
    folder = job.folder
    record = folder.read()
    if record is None or record.ending == "done":
        error = handle.exception()
        last = str(error).strip().splitlines()[-1] if error is not None else "ended without its results"
        return f"failed: {last}\n  all output is in {folder.log}"
    last = _CLASS_OF_AN_ERROR.sub("", folder.last_line())
    return f"{record.ending or 'interrupted'}: {record.reason}{f': {last}' if last else ''}\n  all output is in {folder.log}"


def _devices(experiment: Experiment) -> list[str]:
    """Return the value of CUDA_VISIBLE_DEVICES for each slot."""
    asked = experiment.layout.comparison
    if asked.device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = [name for name in visible.split(",") if name]
    else:
        import torch

        found = [str(number) for number in range(torch.cuda.device_count())]
    of_each = max(1, asked.resources.gpus)
    return [",".join(found[first : first + of_each]) for first in range(0, len(found) - of_each + 1, of_each)]


@contextmanager
def _signals_handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], Any] | signal.Handlers
) -> Iterator[None]:
    """Handle signals like this within the block; only the main thread can, in others nothing is changed.

    SIGHUP stays ignored where `nohup` has the command ignore it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [one for one in numbers if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, or of its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
