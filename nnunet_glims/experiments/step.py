"""One job of a comparison, run: its commands one after the other, all they print in one log, which is locked meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_glims.experiments.lock import hold, is_held
from nnunet_glims.processes import available_cores, find_program

STOPPED = 75
"""Exit code of our trainers after a signal: they saved, and go on with --c."""
SECONDS_TO_SAVE = 600
ATTEMPTS = 3
"""How often a command is started that a signal killed. One that fails by itself is started once."""
MARK = "## "
"""Begins the lines of a log that are not the commands' own."""


class StepFailed(RuntimeError):
    """A command ended with an exit code that is not 0."""


@dataclass
class Step:
    """What an executor runs for a job, in a process of its own.

    Attributes:
        commands: with their arguments.
        log: file for what they print.
        environment: variables to set.
        cancelled: a file that says, where it is there, that the job is not to go on.
    """

    commands: Sequence[Sequence[str]]
    log: Path
    environment: Mapping[str, str]
    cancelled: Path
    _child: subprocess.Popen | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Run the commands.

        Raises:
            StepFailed: one failed, or was stopped for good.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab", buffering=0) as log:
            if not hold(log):
                raise StepFailed(f"{self.log}: another process runs this job")
            for command in self.commands:
                for _ in range(ATTEMPTS):
                    code = self._run(command, log)
                    if code >= 0 or self.cancelled.exists():
                        break
                if code == STOPPED and not self.cancelled.exists() and "SLURM_JOB_ID" in os.environ:
                    # SLURM's signal reached the training before submitit: let submitit put the job back into the queue.
                    self._requeue()
                if code != 0:
                    self._mark(log, f"failed: {Path(command[0]).name} ended with exit code {code}")
                    raise StepFailed(
                        f"{Path(command[0]).name} ended with exit code {code}; its output is in {self.log}"
                    )
            self._mark(log, "done")

    def checkpoint(self):
        """Called by submitit when the job's time is over: the training saves, and the job goes on later."""
        import submitit

        self._stop_child()
        return None if self.cancelled.exists() else submitit.helpers.DelayedSubmission(self._again())

    def _again(self) -> Step:
        return Step(self.commands, self.log, self.environment, self.cancelled)

    def _run(self, command: Sequence[str], log) -> int:
        program = find_program(command[0])
        environment = {**os.environ, **self.environment}
        if "SLURM_CPUS_PER_TASK" in os.environ:
            share = share_of(available_cores())
            environment = {**share, **environment, "nnUNet_n_proc_DA": share["nnUNet_n_proc_DA"]}
        on_several_gpus = "-num_gpus" in command
        # In a session of its own: what stops the runner must not stop the training before it has saved.
        self._child = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_leave_signals_to_workers if on_several_gpus else None,
        )
        self._mark(log, f"started {self._child.pid} {time.time():.0f} {socket.gethostname()} {' '.join(command)}")
        code = self._child.wait()
        with contextlib.suppress(ProcessLookupError):  # data loading processes would wait for it forever
            os.killpg(self._child.pid, signal.SIGKILL)
        printed = _tail(self.log).rpartition(f"{MARK}started ")[2]
        if code == 1 and on_several_gpus and f"terminated with exit code {STOPPED}" in printed:
            code = STOPPED  # of the workers, which nnU-Net's own process does not pass on
        if code in (-signal.SIGTERM, -signal.SIGUSR1):  # what does not listen to them has nothing to save
            code = STOPPED
        self._child = None
        return code

    @staticmethod
    def _mark(log, text: str) -> None:
        log.write(f"{MARK}{text}\n".encode())

    def _stop_child(self) -> None:
        child = self._child
        if child is None:
            return
        ask_to_save(child.pid)
        # This is called by a signal's handler, which may have interrupted child.wait() while that holds the child's lock.
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


def share_of(cores: int) -> dict[str, str]:
    """Variables that keep a job to some cores: data loading has all but one."""
    data_loading = str(max(1, cores - 1))
    return {"OMP_NUM_THREADS": str(cores), "nnUNet_def_n_proc": str(cores), "nnUNet_n_proc_DA": data_loading}


def ask_to_save(pid: int) -> None:
    """Tell a command of a step, and all that it has started, to save and end; nothing where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)


def _leave_signals_to_workers() -> None:
    """On several GPUs it is not nnU-Net's own process that saves, but the workers, which would die with it."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65536))
        return file.read().decode(errors="replace")


@dataclass(frozen=True)
class LogEnd:
    """How far a job's log goes.

    Attributes:
        running: whether a process holds the log.
        pid: of the last command that was started; None where that was on another machine.
        started: its time, seconds since 1970.
        failed: the mark of a failure that nothing came after; "interrupted" where the log ends without a mark.
        last: the last line of the commands' own.
    """

    running: bool
    pid: int | None = None
    started: float | None = None
    failed: str | None = None
    last: str = ""

    @property
    def stopped(self) -> bool:
        """Whether it ended since a trainer was told to save."""
        return self.failed is not None and self.failed.endswith(f" {STOPPED}")


def read_log(path: Path) -> LogEnd | None:
    """The end of a job's log; None where it was never started."""
    try:
        with path.open("rb") as log:
            running = is_held(log)
        lines = _tail(path).splitlines()
    except FileNotFoundError:
        return None
    own = [line.strip() for line in lines if line.strip() and not line.startswith(MARK)]
    marks = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    starts = [mark.split() for mark in marks if mark.startswith("started ")]
    last_mark = marks[-1] if marks else ""
    failed = None
    if not running:
        failed = last_mark if last_mark.startswith("failed") else None if last_mark == "done" else "interrupted"
    pid, started = None, None
    if starts:
        started = float(starts[-1][2])
        pid = int(starts[-1][1]) if starts[-1][3] == socket.gethostname() else None
    return LogEnd(running, pid, started, failed, own[-1] if own else "")
