"""job.json, the record of a job. Besides SLURM's numbers this is the only state of a comparison."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nnunet_glims.errors import ProcessingError
from nnunet_glims.experiments.fingerprint import Ingredients
from nnunet_glims.files import write_text
from nnunet_glims.locks import Process, holder_of
from nnunet_glims.validation import Model

FILE = "job.json"
LOG = "log.txt"
CANCEL = "cancel"
LOCK = "lock"
TRAINING_FILE = "nnunet_glims_training.json"
Ending = Literal["done", "failed", "stopped", "cancelled"]
BYTES_OF_A_LINE = 4096


class ProcessRecord(BaseModel):
    """A process, as JSON; see `nnunet_glims.locks.Process`."""

    model_config = ConfigDict(extra="forbid")

    host: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """Return the process that has this number on this machine now."""
        process = Process.of(pid)
        return cls(host=process.host, pid=process.pid, started=process.started)

    @property
    def process(self) -> Process:
        """The process, which tells whether it is alive."""
        return Process(self.host, self.pid, self.started)


class Attempt(BaseModel):
    """One start of one command.

    Attributes:
        command: the command with its arguments.
        process: the process that ran it.
        began, ended: seconds since 1970; `ended` is None while the command runs, or if its end was not recorded.
        code: exit code; negative for the number of the signal that killed it.
    """

    model_config = ConfigDict(extra="forbid")

    command: list[str]
    process: ProcessRecord
    began: float
    ended: float | None = None
    code: int | None = None


class JobRecord(BaseModel):
    """The content of job.json.

    Attributes:
        name: name of the job.
        kind: kind of the job.
        commands: the commands that do the job.
        ingredients: what the result is made from.
        runner: the process that runs the commands one after the other.
        executor: local, slurm or in-process.
        executor_id: the executor's number for the job; empty where it has none.
        began: when the job was last started, in seconds since 1970.
        ended: when it ended; None while it runs, or if its end was not recorded.
        ending: how it ended: done, failed, stopped (it has saved and will be continued), or cancelled; None as for `ended`.
        reason: what went wrong, for the user.
        attempts: all starts of commands since the job was last started.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: str
    commands: list[list[str]]
    ingredients: dict[str, Any] = {}
    runner: ProcessRecord
    executor: str
    executor_id: str = ""
    began: float
    ended: float | None = None
    ending: Ending | None = None
    reason: str = ""
    attempts: list[Attempt] = []

    @property
    def child(self) -> Process | None:
        """The process of the command that was started last; None if its end was recorded."""
        last = self.attempts[-1] if self.attempts else None
        return None if last is None or last.code is not None else last.process.process

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine works on the job. A command may outlive the process that started it."""
        if self.ending is not None:
            return False
        return self.runner.process.is_alive or (self.child is not None and self.child.is_alive)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the record was written on another machine and does not say that the job has ended."""
        return self.ending is None and not self.runner.process.is_here


class JobFolder:
    """The folder of a job: job.json, the log, and the request to cancel it."""

    def __init__(self, path: Path):
        self.path = path
        self.record_file = path / FILE
        self.log = path / LOG
        self.cancel_file = path / CANCEL
        self.lock_file = path / LOCK

    def read(self) -> JobRecord | None:
        """Return the record; None if the job was never started or the file cannot be read as a record."""
        return _record(JobRecord, self.record_file)

    def write(self, record: JobRecord) -> None:
        """Write the record atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.record_file, record.model_dump_json(indent=2) + "\n")

    def request_cancel(self) -> None:
        """Record that the job must not be continued until it is submitted again."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.cancel_file.touch()

    @property
    def is_cancelled(self) -> bool:
        """Whether the job must not be continued."""
        return self.cancel_file.exists()

    def is_at_work(self, record: JobRecord | None) -> bool:
        """Return whether a process works on the job, on this machine or, by the job's lock, on another one."""
        if record is None or record.ending is not None:
            return False
        return record.is_running or (record.is_elsewhere and holder_of(self.lock_file) is not None)

    def last_line(self) -> str:
        """Return the last line that the commands printed, or its end if it is long; empty if there is none."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - BYTES_OF_A_LINE))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
            return lines[-1] if lines else ""
        return ""


class TrainingRecord(BaseModel):
    """What a fold of a model was trained from. The file lies in the fold's folder, which several comparisons may share.

    Attributes:
        ingredients: the ingredients of the training.
        comparison: path of the YAML file of the comparison that started it.
        process: the process that trains, or trained last; None for a training that was adopted.
        adopted: whether the training had no record and was adopted.
        written: when the record was written, in seconds since 1970.
    """

    model_config = ConfigDict(extra="forbid")

    ingredients: Ingredients
    comparison: str
    process: ProcessRecord | None = None
    adopted: bool = False
    written: float

    @classmethod
    def read(cls, fold: Path) -> TrainingRecord | None:
        """Return the record in a fold's folder; None if there is none."""
        return _record(cls, fold / TRAINING_FILE)

    def write(self, fold: Path) -> None:
        """Write the record to the fold's folder atomically."""
        fold.mkdir(parents=True, exist_ok=True)
        write_text(fold / TRAINING_FILE, self.model_dump_json(indent=2) + "\n")


def new_record(
    name: str, kind: str, commands: list[list[str]], ingredients: Ingredients, executor: str, executor_id: str
) -> JobRecord:
    """Return the record of a job that is started now by this process."""
    return JobRecord(
        name=name,
        kind=kind,
        commands=commands,
        ingredients=ingredients,
        runner=ProcessRecord.of(os.getpid()),
        executor=executor,
        executor_id=executor_id,
        began=time.time(),
    )


def _record(model: type[Model], path: Path) -> Model | None:
    """Return a record; None where there is no such file or it holds no record. Raise `ProcessingError` for a folder."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    except OSError as error:
        raise ProcessingError(
            f"{path}: cannot be read: {error.strerror}. Remove it, and run the command again"
        ) from None
