"""Hands a comparison's jobs to SLURM: for each data set one job that prepares, an array of trainings, then the rest.

A training that reaches its time limit is told to save by SIGUSR1 and goes back into the queue.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.jobs import KINDS, Job, Plan
from nnunet_glims.files import write_text

os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # before submitit looks, here and in the jobs
import submitit

RECORD = "slurm.jsonl"


def submitted(plan: Plan) -> dict[str, str]:
    """Job -> SLURM's number for it, of all that were ever submitted; lines that cannot be read are left out."""
    path = plan.state / RECORD
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found[entry["job"]] = entry["id"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def in_queue(plan: Plan) -> dict[str, str]:
    """Job -> its state in the queue, such as PENDING or RUNNING, of the jobs that are there.

    Raises:
        UsageError: SLURM does not answer, or has jobs of this comparison that its record does not know.
    """
    states = _queue(plan)
    known = {number: job for job, number in submitted(plan).items() if number in states}
    strangers = sorted(set(states) - set(known))
    if strangers:
        raise UsageError(
            f"{plan.state / RECORD}: SLURM has jobs of this comparison that are not in there ({', '.join(strangers[:5])}): the "
            f"file was damaged. Cancel them with scancel -n {_name(plan)}, then run again"
        )
    return {job: states[number] for number, job in known.items()}


def lost(plan: Plan, queued: Collection[str]) -> list[str]:
    """Jobs that were submitted, are in the queue no more, and were not cancelled."""
    return [
        name
        for name in submitted(plan)
        if name not in queued and name in plan.jobs and not plan.cancelled(plan.jobs[name]).exists()
    ]


def output(plan: Plan, job: Job) -> Path | None:
    """What SLURM keeps of a job that ended before it wrote a log of its own, say in a setup line."""
    found = (plan.state / "submitit").glob(f"{submitted(plan).get(job.name)}_*_log.out")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _queue(plan: Plan) -> dict[str, str]:
    """SLURM's number -> state."""
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--user",
        getpass.getuser(),
        "--name",
        _name(plan),
        "--format",
        "%i %T",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        raise UsageError("there is no squeue here: this is no machine of a SLURM cluster") from None
    except subprocess.CalledProcessError as error:
        raise UsageError(f"SLURM does not answer: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise UsageError("SLURM does not answer within a minute") from None
    return dict(line.split(None, 1) for line in done.stdout.splitlines() if line.strip())


def _name(plan: Plan) -> str:
    """Of all SLURM jobs of this comparison."""
    return f"glims-{hashlib.sha256(str(plan.path).encode()).hexdigest()[:12]}"


def submit(plan: Plan, tell: Callable[[str], None], chosen: Collection[str] | None = None) -> None:
    """Submit all jobs that are neither done nor in the queue, each after those that it needs.

    Args:
        plan: of the comparison.
        tell: gets a line for each array.
        chosen: names of the jobs; None is all.

    Raises:
        UsageError: SLURM refuses, or its record is damaged.
    """
    queued = in_queue(plan)
    numbers = {job: number for job, number in submitted(plan).items() if job in queued}
    new: set[str] = set()
    for dataset in plan.comparison.datasets:
        for kind in KINDS:
            jobs = [
                job
                for job in plan.jobs.values()
                if (job.dataset, job.kind) == (dataset, kind)
                and (chosen is None or job.name in chosen)
                and job.name not in queued
                and (not plan.is_done(job) or new & set(job.needs))  # what it was made of is made anew
            ]
            if jobs:
                needs = {need for job in jobs for need in job.needs}
                after = sorted({numbers[need].partition("_")[0] for need in needs if need in numbers}, key=int)
                most = plan.comparison.slurm.array_size
                arrays = [jobs[first : first + most] for first in range(0, len(jobs), most)]
                for array in arrays:
                    numbers |= _submit_array(plan, kind, array, after, len(arrays))
                new |= {job.name for job in jobs}
                tell(f"{kind} {plan.dataset_names[dataset]}: submitted {len(jobs)}")


def _submit_array(plan: Plan, kind: str, jobs: Sequence[Job], after: Sequence[str], arrays: int) -> dict[str, str]:
    executor = submitit.SlurmExecutor(plan.state / "submitit", max_num_timeout=plan.comparison.slurm.requeues)
    executor.update_parameters(**_parameters(plan, kind, after, arrays))
    steps = []
    for job in jobs:
        step = plan.step(job)
        step.cancelled.unlink(missing_ok=True)
        steps.append(step)
    try:
        with executor.batch():
            handles = [executor.submit(step) for step in steps]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        raise UsageError(f"SLURM refuses the jobs: {error}") from None
    numbers = {job.name: str(handle.job_id) for job, handle in zip(jobs, handles, strict=True)}
    record = {**submitted(plan), **numbers}
    write_text(plan.state / RECORD, "".join(json.dumps({"job": job, "id": record[job]}) + "\n" for job in record))
    return numbers


def _parameters(plan: Plan, kind: str, after: Sequence[str], arrays: int) -> dict[str, Any]:
    asked, slurm = plan.comparison.resources, plan.comparison.slurm
    parameters: dict[str, Any] = {
        "job_name": _name(plan),
        "time": round(60 * asked.hours) or 1,
        "cpus_per_task": asked.cpus,
        "mem": f"{round(1024 * asked.memory_gb)}MB",
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": max(1, slurm.at_once // arrays),
        "stderr_to_stdout": True,
        "setup": slurm.setup or None,
    }
    additional = {"requeue": True, **slurm.additional}
    if slurm.partition is not None:
        parameters["partition"] = slurm.partition
    if after:
        # What another job did not finish is found out by the job itself, which says so.
        parameters["dependency"] = "afterany:" + ":".join(after)
    if kind == "train" and asked.gpus and plan.comparison.device == "cuda":
        kind_of_gpu = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
        parameters["gres"] = f"gpu:{kind_of_gpu}{asked.gpus}"
    parameters["additional_parameters"] = additional
    return parameters


def cancel(plan: Plan, jobs: Sequence[Job]) -> None:
    """Take jobs out of the queue; trainings that run save what they have."""
    numbers = submitted(plan)
    queued = in_queue(plan)
    for job in jobs:
        if job.name in queued:
            plan.mark_cancelled(job)
            subprocess.run(["scancel", numbers[job.name]], check=True, timeout=60)
