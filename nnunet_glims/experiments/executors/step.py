"""Run one job of a comparison: its commands one after the other, while job.json and the log are written."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from nnunet_glims.errors import UserError
from nnunet_glims.experiments.jobs.base import Job
from nnunet_glims.experiments.state import Attempt, JobFolder, JobRecord, ProcessRecord, new_record
from nnunet_glims.locks import Holder, LockHeld, Process, lock
from nnunet_glims.processes import available_cores, find_program

STOPPED = 75
"""Exit code of our trainers when they have saved after a signal; the same value as in `nnunet_glims.trainers.stop_signals`."""
SECONDS_TO_SAVE = 600
ATTEMPTS = 3
"""How often a command that a signal killed is started in all. A command that fails by itself is started once."""


class StepFailed(UserError, RuntimeError):
    """A job failed or was cancelled."""


class Step:
    """A callable that runs a job; executors call it in a process of its own.

    Attributes:
        job: the job.
        commands: the commands, each a list of words.
        environment: variables to set for the commands.
        executor: name of the executor, which job.json records.
    """

    def __init__(
        self,
        job: Job,
        executor: str,
        commands: Sequence[Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        self.job = job
        self.executor = executor
        self.commands = [list(command) for command in (job.commands() if commands is None else commands)]
        self.environment = {**job.environment, **(environment or {})}
        self._child: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Run the commands.

        Raises:
            StepFailed: a command failed, or the job was cancelled.
        """
        folder = self.job.folder
        with ExitStack() as held:
            held.enter_context(lock(folder.lock_file, f"job {self.job.name}"))
            before = folder.read()
            if before is not None and before.is_running and not _is_own(before):
                working = before.child or before.runner.process
                raise LockHeld(f"job {self.job.name}", Holder(working, before.began, ""))
            commands = self.commands
            self.job.layout.listings.forget()
            record = new_record(
                self.job.name, self.job.kind, commands, self.job.ingredients(commands), self.executor, _executor_id()
            )
            folder.write(record)
            with folder.log.open("ab", buffering=0) as log:
                try:
                    if held.enter_context(self.job.work(commands)):
                        self._run_all(record, folder, log)
                        self.job.finish()
                except (UserError, OSError) as error:
                    if record.ending is None:
                        with contextlib.suppress(OSError):  # the log's disk may be full too
                            log.write(f"{error}\n".encode())
                        self._end(record, folder, "failed", str(error))
                    raise
            self.job.layout.listings.forget()
            record.ingredients = self.job.final_ingredients(record.ingredients, commands)
            self._end(record, folder, "done", "")

    def _run_all(self, record: JobRecord, folder: JobFolder, log: BinaryIO) -> None:
        for command in self.commands:
            code = 0
            for _ in range(ATTEMPTS):
                if folder.is_cancelled:
                    code = STOPPED
                    break
                code = self.run_command(command, record, folder, log)
                if code >= 0:
                    break
            program = Path(command[0]).name
            if code == 0:
                continue
            if folder.is_cancelled:
                self._end(record, folder, "cancelled", f"{program} was cancelled")
            elif code == STOPPED:
                self._end(record, folder, "stopped", f"{program} was stopped; the next run goes on from there")
                if "SLURM_JOB_ID" in os.environ:
                    # SLURM's signal reached the training before submitit: let submitit requeue the job.
                    self._requeue()
            else:
                self._end(record, folder, "failed", f"{program} {_told(code)}")
            raise StepFailed(f"{record.reason}; its output is in {folder.log}")

    def checkpoint(self):
        """Let the training save and return the job to continue later; submitit calls this when the time limit is near."""
        import submitit

        self._stop_child()
        folder = self.job.folder
        record = folder.read()
        if record is not None and record.ending is None:
            ending, reason = ("cancelled", "cancelled") if folder.is_cancelled else ("stopped", "its time was over")
            self._end(record, folder, ending, reason)
        return None if folder.is_cancelled else submitit.helpers.DelayedSubmission(self._again())

    def _again(self) -> Step:
        return Step(self.job, self.executor, self.commands, self.environment)

    def run_command(self, command: Sequence[str], record: JobRecord, folder: JobFolder, log: BinaryIO) -> int:
        """Run one command and return its exit code, the negative number of the signal that killed it, or `STOPPED`."""
        on_several_gpus = "-num_gpus" in command
        began = log.seek(0, os.SEEK_END)
        # In a session of its own: signals that stop the runner must not end the training before it has saved.
        self._child = subprocess.Popen(
            [find_program(command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self._variables(),
            start_new_session=True,
            preexec_fn=_leave_signals_to_workers if on_several_gpus else None,
        )
        process = ProcessRecord.of(self._child.pid)
        record.attempts.append(Attempt(command=list(command), process=process, began=time.time()))
        folder.write(record)
        self.job.note_process(process)
        code = self._child.wait()
        with contextlib.suppress(ProcessLookupError):  # data loading processes would wait forever
            os.killpg(self._child.pid, signal.SIGKILL)
        record.attempts[-1].ended, record.attempts[-1].code = time.time(), code
        folder.write(record)
        if code == 1 and on_several_gpus and _worker_stopped(folder.log, began):
            code = STOPPED  # exit code of the workers, which nnU-Net's main process does not pass on
        if code in (-signal.SIGTERM, -signal.SIGUSR1):  # a command without a handler saves nothing
            code = STOPPED
        self._child = None
        return code

    def _variables(self) -> dict[str, str]:
        environment = {**os.environ, **self.environment}
        if "SLURM_CPUS_PER_TASK" not in os.environ:
            return environment
        share = share_of(available_cores())
        return {**share, **environment, "nnUNet_n_proc_DA": share["nnUNet_n_proc_DA"]}

    @staticmethod
    def _end(record: JobRecord, folder: JobFolder, ending, reason: str) -> None:
        record.ended, record.ending, record.reason = time.time(), ending, reason
        folder.write(record)

    def _stop_child(self) -> None:
        child = self._child
        if child is None:
            return
        ask_to_save(child.pid)
        # A signal handler calls this; it may have interrupted child.wait() while that holds the child's lock.
        with contextlib.suppress(ChildProcessError):  # it has ended
            for _ in range(10 * SECONDS_TO_SAVE):
                if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    return
                time.sleep(0.1)
            os.killpg(child.pid, signal.SIGKILL)

    @staticmethod
    def _requeue() -> None:
        from submitit.core.job_environment import JobEnvironment

        os.kill(os.getpid(), JobEnvironment._usr_sig())
        time.sleep(60)  # submitit's handler ends this process
        sys.exit(STOPPED)


def _is_own(record: JobRecord) -> bool:
    """Return whether this process wrote the record, which then describes an earlier run of the job that has ended."""
    return record.runner.process == Process.of(os.getpid()) and (record.child is None or not record.child.is_alive)


def _executor_id() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _told(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name} ({ATTEMPTS} times)"
    return f"was killed by signal {-code} ({ATTEMPTS} times)"


def _worker_stopped(log: Path, began: int) -> bool:
    """Return whether a worker of a distributed training was stopped, by what torch prints into the log after `began`."""
    wanted = f"terminated with exit code {STOPPED}".encode()
    with log.open("rb") as file:
        file.seek(began)
        return any(wanted in line for line in file)


def share_of(cores: int) -> dict[str, str]:
    """Return variables that limit a job to a number of cores; data loading gets all but one of them."""
    data_loading = str(max(1, cores - 1))
    return {"OMP_NUM_THREADS": str(cores), "nnUNet_def_n_proc": str(cores), "nnUNet_n_proc_DA": data_loading}


def ask_to_save(pid: int) -> None:
    """Signal a command and all processes that it has started to save and end. A command that has ended is ignored."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)


def stop(folders: Sequence[JobFolder], asked: set[int] | None = None, tell: Callable[[str], None] = print) -> None:
    """Ask the commands of running jobs to save and end, except those in `asked`, to which the others are added."""
    asked = set() if asked is None else asked
    for folder in folders:
        record = folder.read()
        child = None if record is None or record.ending is not None else record.child
        if child is None or child.pid in asked:
            continue
        if child.is_alive:
            asked.add(child.pid)
            ask_to_save(child.pid)
        elif not child.is_here:
            tell(f"{folder.path.name}: runs on {child.host}: stop it there")


def _leave_signals_to_workers() -> None:
    """Ignore signals in this process: on several GPUs the workers save, and they would end together with it."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
