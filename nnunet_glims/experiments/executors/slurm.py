"""Submit a comparison's jobs to SLURM: for each data set one job that prepares it, an array of trainings, then the rest.

A training that reaches its time limit gets SIGUSR1, saves, and is put back into the queue.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.executors.base import LOST, Executor, Tell
from nnunet_glims.experiments.executors.step import Step
from nnunet_glims.experiments.experiment import KINDS
from nnunet_glims.experiments.jobs.base import Job
from nnunet_glims.files import write_text
from nnunet_glims.locks import user_name

os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # submitit reads it when it is imported
import submitit


class Slurm(Executor):
    """Submit jobs to SLURM and return without waiting for them."""

    name: ClassVar[str] = "slurm"
    waits: ClassVar[bool] = False

    @property
    def job_name(self) -> str:
        """Name of all SLURM jobs of this comparison."""
        return f"glims-{hashlib.sha256(str(self.experiment.layout.path).encode()).hexdigest()[:12]}"

    def submitted(self) -> dict[str, str]:
        """Return job -> SLURM's number for all jobs that were ever submitted; lines that cannot be read are left out."""
        path = self.experiment.layout.slurm_numbers
        found: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
                found[entry["job"]] = entry["id"]
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def in_queue(self) -> dict[str, str]:
        """Return job -> its state in the queue, such as PENDING or RUNNING, for the jobs that are in the queue.

        Raises:
            UsageError: SLURM does not answer, or its queue has jobs of this comparison that slurm.jsonl does not list.
        """
        states = self._queue()
        known = {number: job for job, number in self.submitted().items() if number in states}
        unknown = sorted(set(states) - set(known))
        if unknown:
            raise UsageError(
                f"{self.experiment.layout.slurm_numbers}: SLURM has jobs of this comparison that are not in there "
                f"({', '.join(unknown[:5])}): the file was damaged. Cancel them with scancel -n {self.job_name}, then run again"
            )
        return {job: states[number] for number, job in known.items()}

    def states(self) -> dict[str, str]:
        """Return the states of jobs in the queue, and LOST for jobs that left it before they started; see `Executor.states`."""
        queued = self.in_queue()
        jobs = self.experiment.jobs
        lost = [
            name
            for name in self.submitted()
            if name not in queued
            and name in jobs
            and not jobs[name].folder.is_cancelled
            and jobs[name].folder.read() is None
        ]
        return {**queued, **dict.fromkeys(lost, LOST)}

    def output(self, job: Job) -> Path | None:
        """Return the job's log, or SLURM's own log of a job that ended before it wrote one, for example in a setup line."""
        number = self.submitted().get(job.name)
        found = self.experiment.layout.submitit.glob(f"{number}_*_log.out")
        return super().output(job) or max(found, key=lambda path: path.stat().st_mtime, default=None)

    def _queue(self) -> dict[str, str]:
        """Return SLURM's number -> state for the jobs of this comparison."""
        command = [
            "squeue", "--noheader", "--array", "--user", user_name(), "--name", self.job_name, "--format", "%i %T",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except FileNotFoundError:
            raise UsageError("there is no squeue here: this is no machine of a SLURM cluster") from None
        except subprocess.CalledProcessError as error:
            raise UsageError(f"SLURM does not answer: {error.stderr.strip()}") from None
        except subprocess.TimeoutExpired:
            raise UsageError("SLURM does not answer within a minute") from None
        return dict(line.split(None, 1) for line in done.stdout.splitlines() if line.strip())

    def submit(self, jobs: Sequence[Job], tell: Tell) -> list[str]:
        """Submit all jobs that are neither done nor in the queue; see `Executor.submit`."""
        queued = self.in_queue()
        numbers = {job: number for job, number in self.submitted().items() if job in queued}
        new: set[str] = set()
        asked = self.experiment.layout.comparison
        self.experiment.look_again()
        for dataset in asked.datasets:
            for kind in KINDS:
                wanted = [
                    job
                    for job in jobs
                    if (job.dataset, job.kind) == (dataset, kind)
                    and job.name not in queued
                    and (new & set(job.needs) or not self.experiment.is_done(job))  # needs a job that is made again
                ]
                if not wanted:
                    continue
                needs = {need for job in wanted for need in job.needs}
                after = sorted({numbers[need].partition("_")[0] for need in needs if need in numbers}, key=int)
                most = asked.slurm.array_size
                arrays = [wanted[first : first + most] for first in range(0, len(wanted), most)]
                for array in arrays:
                    numbers |= self._submit_array(array, after, len(arrays))
                new |= {job.name for job in wanted}
                tell(f"{kind} {self.experiment.layout.dataset_names[dataset]}: submitted {len(wanted)}")
        tell(f"See: nnunet-glims compare status {self.experiment.layout.path} --executor slurm")
        return []

    def _submit_array(self, jobs: Sequence[Job], after: Sequence[str], arrays: int) -> dict[str, str]:
        layout = self.experiment.layout
        executor = submitit.SlurmExecutor(layout.submitit, max_num_timeout=layout.comparison.slurm.requeues)
        executor.update_parameters(**self.parameters(jobs[0].gpu, after, arrays))
        for job in jobs:
            job.folder.cancel_file.unlink(missing_ok=True)
        steps = [Step(job, self.name) for job in jobs]
        try:
            with executor.batch():
                handles = [executor.submit(step) for step in steps]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise UsageError(f"SLURM refuses the jobs: {error}") from None
        numbers = {job.name: str(handle.job_id) for job, handle in zip(jobs, handles, strict=True)}
        record = {**self.submitted(), **numbers}
        text = "".join(json.dumps({"job": job, "id": record[job]}) + "\n" for job in record)
        write_text(layout.slurm_numbers, text)
        return numbers

    def parameters(self, gpu: bool, after: Sequence[str], arrays: int) -> dict[str, Any]:
        """Return the parameters of submitit for one submission.

        Args:
            gpu: whether the jobs use GPUs, where the comparison's device is one.
            after: SLURM's numbers of the jobs that must end first.
            arrays: number of arrays that share the limit `at_once`.
        """
        comparison = self.experiment.layout.comparison
        asked, slurm = comparison.resources, comparison.slurm
        parameters: dict[str, Any] = {
            "job_name": self.job_name,
            "time": round(60 * asked.hours) or 1,
            "cpus_per_task": asked.cpus,
            "mem": f"{round(1024 * asked.memory_gb)}MB",
            "signal_delay_s": slurm.signal_seconds,
            "array_parallelism": max(1, slurm.at_once // arrays),
            "stderr_to_stdout": True,
            "setup": slurm.setup or None,
        }
        if slurm.partition is not None:
            parameters["partition"] = slurm.partition
        if after:
            # A job checks itself whether the jobs it needs have succeeded, and says which one has not.
            parameters["dependency"] = "afterany:" + ":".join(after)
        if gpu and asked.gpus and comparison.device == "cuda":
            kind_of_gpu = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
            parameters["gres"] = f"gpu:{kind_of_gpu}{asked.gpus}"
        parameters["additional_parameters"] = {"requeue": True, **slurm.additional}
        return parameters

    def cancel(self, jobs: Sequence[Job], tell: Tell) -> None:
        """Remove jobs from the queue; running trainings save a checkpoint first."""
        numbers = self.submitted()
        queued = self.in_queue()
        for job in jobs:
            if job.name in queued:
                job.folder.request_cancel()
                subprocess.run(["scancel", numbers[job.name]], check=True, timeout=60)
