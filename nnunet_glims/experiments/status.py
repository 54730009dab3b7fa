"""What the jobs of a comparison are doing, seen from the files they leave and from SLURM's queue."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Literal

from nnunet_glims.experiments.jobs import Job, Plan
from nnunet_glims.experiments.step import read_log
from nnunet_glims.nnunet.training_log import read_training_log

State = Literal["waiting", "queued", "running", "done", "failed"]
STATES: tuple[State, ...] = ("waiting", "queued", "running", "done", "failed")


@dataclass(frozen=True)
class Status:
    """What is known of one job.

    Attributes:
        job: the job.
        state: waiting (for other jobs, or to be run), queued (in SLURM), running, done, failed.
        detail: epoch and time left of a training, the last line of what failed.
    """

    job: Job
    state: State
    detail: str = ""


def status_of(plan: Plan, queued: Mapping[str, str] | None = None, lost: Collection[str] = ()) -> list[Status]:
    """Of all jobs, in order.

    Args:
        plan: of the comparison.
        queued: job -> state in SLURM's queue, of the jobs that are there.
        lost: jobs that were in SLURM's queue and are no more.
    """
    queued = queued or {}
    logs = {path.stem for path in (plan.state / "logs").glob("*.log")}
    found = [_status(plan, job, job.name in logs, queued.get(job.name)) for job in plan.jobs.values()]
    return [
        replace(status, state="failed", detail="ended before it began")
        if status.state == "waiting" and status.job.name in lost and status.job.name not in logs
        else status
        for status in found
    ]


def _status(plan: Plan, job: Job, has_log: bool, in_queue: str | None) -> Status:
    if in_queue == "RUNNING":
        return Status(job, "running", _progress(plan, job))
    if plan.is_done(job):
        return Status(job, "done")
    end = read_log(plan.log(job)) if has_log else None
    if end is not None and end.running:
        return Status(job, "running", _progress(plan, job))
    if in_queue is not None:
        return Status(job, "queued", in_queue.lower())
    if end is not None and end.stopped:
        return Status(job, "waiting", "stopped; the next run goes on from there")
    if end is not None and end.failed is not None:
        return Status(job, "failed", f"{end.failed}: {end.last}" if end.last else end.failed)
    return Status(job, "waiting")


def _progress(plan: Plan, job: Job) -> str:
    if job.kind != "train":
        return ""
    fold = plan.fold(job)
    log = read_training_log(fold)
    done = len(log.curves["pseudo Dice"])
    epochs = _epochs(fold)
    text = f"epoch {done}" + (f" of {epochs}" if epochs else "")
    if done:
        text += f", pseudo Dice {log.curves['pseudo Dice'][-1]:.3f}"
        if done == epochs:
            text += ", validation"
        elif epochs and log.hours is not None:
            left = log.hours / done * (epochs - done)
            text += f", {left:.1f} h left" if left >= 1 else f", {ceil(60 * left)} min left"
    return text


def _epochs(fold: Path) -> int | None:
    """How many the training is to have, from what nnU-Net wrote down at its start."""
    debug = fold / "debug.json"
    match = re.search(r'"num_epochs": "?(\d+)', debug.read_text(errors="replace")) if debug.exists() else None
    return int(match[1]) if match else None


def count(statuses: list[Status]) -> str:
    """ "3 done, 1 running, 4 waiting" """
    found = Counter(status.state for status in statuses)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])
