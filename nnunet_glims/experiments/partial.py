"""The leaderboard of what is done so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.jobs import Plan


def report(plan: Plan, tell: Callable[[str], None]) -> list[Path]:
    """Evaluate the entries whose trainings are all done, and compare them on the cases they share; returns the pages.

    Raises:
        UsageError: no entry's trainings are done.
        StepFailed: a command failed.
    """
    pages = []
    for number in plan.comparison.datasets:
        job = plan.job_named(f"report_D{number:03d}")
        usable = []
        for name in job.needs:
            evaluation = plan.jobs[name]
            if all(plan.is_done(plan.jobs[need]) for need in evaluation.needs):
                if not plan.is_done(evaluation):
                    tell(f"{name}: started")
                    plan.step(evaluation)()
                usable.append(name)
            else:
                missing = [need for need in evaluation.needs if not plan.is_done(plan.jobs[need])]
                tell(f"{name}: left out, {len(missing)} of {len(evaluation.needs)} trainings are not done")
        if usable:
            plan.step(job, plan.report_commands(job, usable))()
            pages.append(plan.report(number) / "leaderboard.html")
    if not pages:
        raise UsageError(f"{plan.path}: no entry has all its trainings yet: nnunet-glims compare run {plan.path}")
    return pages
