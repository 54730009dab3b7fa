"""Run jobs one after the other in this process, for tests and for debugging."""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import entry_points
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, ClassVar

from nnunet_glims.errors import UserError
from nnunet_glims.experiments.executors.base import Executor, Tell
from nnunet_glims.experiments.executors.step import Step
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.jobs.base import Job
from nnunet_glims.experiments.state import Attempt, JobFolder, JobRecord, ProcessRecord

Call = Callable[[Sequence[str]], int]
"""A function that runs a command, given as a list of words, in this process, and returns its exit code."""


def call_command(command: Sequence[str]) -> int:
    """Run `python -m MODULE` or the entry point of an installed command in this process; return the exit code."""
    program, *arguments = command
    before = sys.argv
    try:
        if program == sys.executable and arguments[:1] == ["-m"]:
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
            return 0
        (script,) = entry_points(group="console_scripts", name=Path(program).name)
        sys.argv = [program, *arguments]
        return script.load()() or 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code)
            return 1
        return ended.code or 0
    finally:
        sys.argv = before


class _InProcessStep(Step):
    def __init__(self, job: Job, call: Call):
        super().__init__(job, InProcess.name)
        self._call = call

    def run_command(self, command: Sequence[str], record: JobRecord, folder: JobFolder, log: BinaryIO) -> int:
        attempt = Attempt(command=list(command), process=ProcessRecord.of(os.getpid()), began=time.time())
        record.attempts.append(attempt)
        folder.write(record)
        printed = TextIOWrapper(open(folder.log, "ab"))  # noqa: SIM115
        with printed, redirect_stdout(printed), redirect_stderr(printed), _variables(self.environment):
            code = self._call(command)
        attempt.ended, attempt.code = time.time(), code
        folder.write(record)
        return code


class InProcess(Executor):
    """Runs jobs one after the other in this process.

    Attributes:
        call: function that runs a command, given as a list of words, and returns its exit code.
    """

    name: ClassVar[str] = "in-process"

    def __init__(self, experiment: Experiment, call: Call = call_command):
        super().__init__(experiment)
        self.call = call

    def submit(self, jobs: Sequence[Job], tell: Tell) -> list[str]:
        """Run the jobs that are not done; see `Executor.submit`."""
        failed: list[str] = []
        for job in jobs:
            self.experiment.look_again()
            if job.outcome().is_done:
                continue
            if set(job.needs) & set(failed):
                failed.append(job.name)
                continue
            job.folder.cancel_file.unlink(missing_ok=True)
            try:
                _InProcessStep(job, self.call)()
                tell(f"{job.name}: done")
            except UserError as error:
                failed.append(job.name)
                tell(f"{job.name}: {error}")
        return failed

    def states(self) -> dict[str, str]:
        """Return an empty mapping: while a job runs, `submit` has not returned."""
        return {}

    def cancel(self, jobs: Sequence[Job], tell: Tell) -> None:
        """Do nothing: while a job runs, `submit` has not returned."""


@contextmanager
def _variables(wanted: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
