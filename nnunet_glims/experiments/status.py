"""Find the state of each job of a comparison from job.json, from its result, and from the executor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nnunet_glims.experiments.executors.base import LOST, Executor
from nnunet_glims.experiments.jobs.base import Job

State = Literal["waiting", "queued", "running", "done", "failed", "cancelled", "refused"]
STATES: tuple[State, ...] = ("waiting", "queued", "running", "done", "failed", "cancelled", "refused")


@dataclass(frozen=True)
class Status:
    """The state of one job.

    Attributes:
        job: the job.
        state: waiting (for other jobs, or to be run), queued (in SLURM), running, done, failed, cancelled, or refused (its
            result was made from something else, or does not say from what).
        detail: epoch and time left of a training, the last line of what failed, what is different.
    """

    job: Job
    state: State
    detail: str = ""


def status_of(executor: Executor) -> list[Status]:
    """Return the status of all jobs of the executor's comparison, in their order."""
    experiment = executor.experiment
    experiment.look_again()
    states = executor.states()
    jobs = experiment.layout.state / "jobs"
    started = {path.name for path in jobs.iterdir()} if jobs.is_dir() else set()
    return [_status(job, job.name in started, states) for job in experiment.jobs.values()]


def _status(job: Job, was_started: bool, states: Mapping[str, str]) -> Status:
    in_queue = states.get(job.name)
    if in_queue == "RUNNING":
        return Status(job, "running", job.progress())
    outcome = job.outcome()
    if outcome.is_done:
        return Status(job, "done")
    if in_queue == LOST:
        return Status(job, "failed", "ended before it began")
    if in_queue is not None:
        return Status(job, "queued", in_queue.lower())
    if outcome.state == "refused":
        return Status(job, "refused", str(outcome.change))
    if outcome.state == "unrecorded":
        return Status(job, "refused", "nothing says what it was made from; run with --adopt takes it")
    record = job.folder.read() if was_started else None
    if record is None or record.ending == "done":  # the job was never started, or its result is outdated
        return Status(job, "waiting", "" if outcome.change is None else f"is made again: {outcome.change}")
    if record.ending == "stopped":
        return Status(job, "waiting", "stopped; the next run goes on from there")
    if record.ending == "cancelled":
        return Status(job, "cancelled", "retry or run goes on from there")
    folder = job.folder
    if folder.is_at_work(record):
        return Status(job, "running", job.progress())
    last = folder.last_line()
    reason = record.reason if record.ending == "failed" else "interrupted"
    return Status(job, "failed", f"{reason}: {last}" if last and last not in reason else reason)


def count(statuses: list[Status]) -> str:
    """Return the number of jobs in each state, such as "3 done, 1 running, 4 waiting"."""
    found = Counter(status.state for status in statuses)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])
