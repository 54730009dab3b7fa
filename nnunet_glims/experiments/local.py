"""Runs a comparison's jobs on this machine: one training a GPU, or one at a time on CPUs, others beside them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import submitit

from nnunet_glims.experiments.jobs import Job, Plan
from nnunet_glims.experiments.step import ATTEMPTS, ask_to_save, read_log, share_of
from nnunet_glims.processes import available_cores

POLL_SECONDS = 0.5
YEARS_IN_MINUTES = 10 * 365 * 24 * 60


@dataclass
class _Running:
    job: Job
    handle: submitit.Job | None
    """None for a job that an earlier run started and that is still running."""
    slot: int
    attempt: int


def run_local(
    plan: Plan, tell: Callable[[str], None], chosen: Collection[str] | None = None, parallel: int | None = None
) -> list[str]:
    """Bring all jobs to their end that can be; returns the names of those that failed.

    Args:
        plan: of the comparison.
        tell: gets a line whenever a job starts or ends.
        chosen: names of the jobs to run; None runs all that are not done.
        parallel: jobs at once; None is one for each GPU, or one.
    """
    devices = _devices(plan)
    slots = list(range(parallel or plan.comparison.parallel or len(devices) or 1))
    folder = plan.state / "submitit" / f"{time.time():.0f}-{os.getpid()}"
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(timeout_min=YEARS_IN_MINUTES)
    share = share_of(max(1, available_cores() // len(slots)))
    # What the user has set stays, and one job at a time has all cores.
    share = {} if len(slots) == 1 else {name: share[name] for name in share if name not in os.environ}
    running: list[_Running] = []
    attempts: dict[str, int] = {}
    failed: dict[str, str] = {}
    waiting = [job for job in plan.jobs.values() if chosen is None or job.name in chosen]
    waiting = [job for job in waiting if not plan.is_done(job)]
    done = {name for name, job in plan.jobs.items() if plan.is_done(job)}
    tell(f"{len(done)} of {len(plan.jobs)} jobs are done, {len(waiting)} to do, {len(slots)} at a time")

    def start(job: Job) -> None:
        slot = next(slot for slot in slots if slot not in {other.slot for other in running})
        end = read_log(plan.log(job))
        if end is not None and end.running:
            tell(f"{job.name}: was started before and is still running")
            running.append(_Running(job, None, slot, 1))
            return
        attempts[job.name] = attempts.get(job.name, 0) + 1
        gpus = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}
        step = plan.step(job, **share, **gpus)
        step.cancelled.unlink(missing_ok=True)
        with _without_interrupts():
            handle = executor.submit(step)
        tell(f"{job.name}: started")
        running.append(_Running(job, handle, slot, attempts[job.name]))

    def ended(one: _Running) -> bool:
        if one.handle is not None and not one.handle.done():
            return False
        end = read_log(plan.log(one.job))  # a training may outlive the process that started it
        return end is None or not end.running

    try:
        while waiting or running:
            for one in [one for one in running if ended(one)]:
                running.remove(one)
                if plan.is_done(one.job):
                    done.add(one.job.name)
                    tell(f"{one.job.name}: done")
                    outdated = [job for job in plan.jobs.values() if job.name in done and one.job.name in job.needs]
                    for job in outdated:  # made of what was there before
                        if not plan.is_done(job) and (chosen is None or job.name in chosen):
                            done.discard(job.name)
                            waiting.append(job)
                elif one.handle is None or (_was_killed(plan, one.job) and one.attempt < ATTEMPTS):
                    tell(f"{one.job.name}: was interrupted, goes on")
                    waiting.insert(0, one.job)
                else:
                    failed[one.job.name] = _reason(plan, one.job)
                    tell(f"{one.job.name}: {failed[one.job.name]}")
            for job in list(waiting):
                if any(need in failed for need in job.needs):
                    failed[job.name] = "not started, since it needs what failed"
                    waiting.remove(job)
                elif len(running) < len(slots) and all(need in done for need in job.needs):
                    waiting.remove(job)
                    start(job)
            if not running and waiting:  # left out by the choice of jobs
                break
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        tell("stopping: trainings save what they have")
        stop([one.job for one in running], plan)
        while any(not ended(one) for one in running):
            time.sleep(POLL_SECONDS)
        raise
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)
    return list(failed)


def stop(jobs: list[Job], plan: Plan) -> None:
    """Ask the commands of running jobs to save and end."""
    for job in jobs:
        end = read_log(plan.log(job))
        if end is not None and end.running and end.pid is not None:
            ask_to_save(end.pid)


def _was_killed(plan: Plan, job: Job) -> bool:
    """By a signal, with whatever commands were running, and not because someone cancelled it."""
    if plan.cancelled(job).exists():
        return False
    end = read_log(plan.log(job))
    if end is None or end.failed is None:
        return False
    return end.failed == "interrupted" or end.stopped


def _reason(plan: Plan, job: Job) -> str:
    end = read_log(plan.log(job))
    if end is None or end.failed is None:
        return f"ended without its results; all output is in {plan.log(job)}"
    return f"{end.failed}: {end.last}\n  all output is in {plan.log(job)}"


def _devices(plan: Plan) -> list[str]:
    """GPUs for each training, as CUDA_VISIBLE_DEVICES has them."""
    if plan.comparison.device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = [name for name in visible.split(",") if name]
    else:
        import torch

        found = [str(number) for number in range(torch.cuda.device_count())]
    each = max(1, plan.comparison.resources.gpus)
    return [",".join(found[first : first + each]) for first in range(0, len(found) - each + 1, each)]


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started inside do not see Ctrl-C, which reaches all of a terminal: the runner tells them itself."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def free_bytes(folder: Path) -> int:
    """On the disk of a folder, or of the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
