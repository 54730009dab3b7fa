"""Make the leaderboard of the entries that are complete so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.executors.step import Step
from nnunet_glims.experiments.experiment import Experiment

EXECUTOR = "report"


def report(experiment: Experiment, tell: Callable[[str], None]) -> list[Path]:
    """Evaluate the entries whose trainings are all done, and compare them on their common cases.

    Returns the paths of the pages, one for each data set.

    Raises:
        UsageError: there is no entry whose trainings are all done.
        StepFailed: a command failed.
    """
    pages = []
    for job in experiment.reports:
        usable, notes = [], []
        for evaluation in job.evaluations:
            missing = [need for need in evaluation.needs if not experiment.is_done(experiment.jobs[need])]
            if missing:
                lacks = f"{len(missing)} of {len(evaluation.needs)} trainings are not done"
                tell(f"{evaluation.name}: left out, {lacks}")
                notes.append(f"Partial report: {evaluation.title} is left out, {lacks}.")
                continue
            if not experiment.is_done(evaluation):
                tell(f"{evaluation.name}: started")
                evaluation.folder.cancel_file.unlink(missing_ok=True)
                Step(evaluation, EXECUTOR)()
            usable.append(evaluation)
        if usable:
            job.folder.cancel_file.unlink(missing_ok=True)
            Step(job, EXECUTOR, job.commands_of(usable, notes))()
            pages.append(job.page)
    if not pages:
        path = experiment.layout.path
        raise UsageError(f"{path}: no entry has all its trainings yet: nnunet-glims compare run {path}")
    return pages
