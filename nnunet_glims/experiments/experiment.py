"""The jobs of a comparison, and which of their results are up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.comparison import file_name, seeded_name
from nnunet_glims.experiments.entry_plans import EntryPlans
from nnunet_glims.experiments.jobs.base import Job, Outcome
from nnunet_glims.experiments.jobs.ensemble import Ensemble
from nnunet_glims.experiments.jobs.evaluate import Evaluate
from nnunet_glims.experiments.jobs.prepare import Prepare
from nnunet_glims.experiments.jobs.report import Report
from nnunet_glims.experiments.jobs.train import Train
from nnunet_glims.experiments.layout import Layout
from nnunet_glims.validation import nearest

KINDS = tuple(kind.kind for kind in (Prepare, Train, Evaluate, Ensemble, Report))
MOST_REFUSALS = 5


class Experiment:
    """A comparison, its jobs, and the results that are on disk.

    Attributes:
        layout: the files and folders of the comparison.

    Raises:
        UsageError: on construction; see `Layout`.
    """

    def __init__(self, path: Path, trust: bool = False):
        self.layout = Layout(path, trust)

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """Name -> job. Each job comes after those that it needs."""
        return {job.name: job for job in self._jobs()}

    def _jobs(self) -> Iterator[Job]:
        layout, asked = self.layout, self.layout.comparison
        plans = {(entry.name, seed): EntryPlans(layout, entry, seed) for entry in asked.entries for seed in asked.seeds}
        members_of_ensembles = {name for members in asked.ensembles for name in members}
        for number in asked.datasets:
            dataset = f"D{number:03d}"
            prepare = Prepare(layout, f"prepare_{dataset}", number, list(plans.values()))
            yield prepare
            evaluations: list[Evaluate | Ensemble] = []
            for seed in asked.seeds:
                trainings: dict[str, list[str]] = {}
                for entry in asked.entries:
                    name = f"{dataset}_{seeded_name(entry, seed)}"
                    own, in_ensemble = plans[entry.name, seed], entry.name in members_of_ensembles
                    trainings[entry.name] = [f"train_{name}_fold{fold}" for fold in asked.folds]
                    for fold, training in zip(asked.folds, trainings[entry.name], strict=True):
                        yield Train(layout, training, (prepare.name,), number, own, fold, in_ensemble)
                    evaluations.append(Evaluate(layout, f"evaluate_{name}", trainings[entry.name], number, own))
                    yield evaluations[-1]
                for names in asked.ensembles:
                    seeded = "" if seed is None else f"_seed{seed}"
                    name = f"ensemble_{dataset}_{'+'.join(map(file_name, names))}{seeded}"
                    needs = [job for member in names for job in trainings[member]]
                    evaluations.append(Ensemble(layout, name, needs, number, [plans[one, seed] for one in names]))
                    yield evaluations[-1]
            yield Report(layout, f"report_{dataset}", number, evaluations)

    @property
    def reports(self) -> list[Report]:
        """The jobs that write leaderboards, one for each data set."""
        return [job for job in self.jobs.values() if isinstance(job, Report)]

    def job_named(self, name: str) -> Job:
        """Return the job of that name; raise `UsageError` with the nearest known name if there is none."""
        if name not in self.jobs:
            raise UsageError(f"job {name!r} is unknown: {nearest(name, list(self.jobs))}")
        return self.jobs[name]

    def look_again(self) -> None:
        """Forget the digests of folders, so that changed files are noticed."""
        self.layout.listings.forget()

    def is_done(self, job: Job) -> bool:
        """Return whether the job's result exists and was made from what the comparison asks for."""
        return job.outcome().is_done

    def settle(self, jobs: Sequence[Job], again: Sequence[str], adopt: bool, tell: Callable[[str], None]) -> None:
        """Decide about results that are there, before anything runs. Nothing is changed where something is refused.

        Args:
            jobs: that are to be done.
            again: names of jobs whose results are made again. Old trainings are moved aside.
            adopt: take results that do not say what they were made from for the ones that are asked for.
            tell: is called with a line for the user.

        Raises:
            UsageError: a job is unknown, or results were made from something else than is asked for, or do not say from
                what.
            LockHeld: a training that is to be made again is under way.
        """
        chosen = {name: self.job_named(name) for name in again}
        others = [job for job in jobs if job.name not in chosen]
        unrecorded = [job for job in others if adopt and job.outcome().state == "unrecorded"]
        self.check([job for job in others if job not in unrecorded])
        for job in unrecorded:
            job.check_adoption()
        for job in chosen.values():
            if (told := job.discard()) is not None:
                tell(told)
        for job in unrecorded:
            if job.outcome().state == "unrecorded":
                tell(job.adopt())
        self.look_again()
        self.check(jobs)

    def check(self, jobs: Iterable[Job]) -> None:
        """Check that no result was made from something other than what is asked for, and that each has a record.

        Raises:
            UsageError: there are such results. The message names the values that differ and what to do.
        """
        outcomes: dict[str, Outcome] = {job.name: job.outcome() for job in jobs}
        refused = {name: outcome for name, outcome in outcomes.items() if outcome.state == "refused"}
        if refused:
            shown = [f"  {name}: {outcome.change}" for name, outcome in list(refused.items())[:MOST_REFUSALS]]
            more = [f"  and {len(refused) - MOST_REFUSALS} more"] if len(refused) > MOST_REFUSALS else []
            raise UsageError(
                "\n".join(
                    [
                        f"{self.layout.path}: results are there that were made from something else:",
                        *shown,
                        *more,
                        "Keep them and give the entry, or a copy of the file, a new name; or have them made again, which moves "
                        "old trainings aside:",
                        f"  nnunet-glims compare run {self.layout.path} --again {' '.join(refused)}",
                    ]
                )
            )
        unrecorded = [name for name, outcome in outcomes.items() if outcome.state == "unrecorded"]
        if unrecorded:
            shown_names = ", ".join(_with_reason(name, outcomes[name]) for name in unrecorded[:MOST_REFUSALS])
            raise UsageError(
                f"{self.layout.path}: nothing says for certain what these results were made from (no record, as in results of "
                f"earlier releases, or files that were written again): {shown_names}"
                f"{' …' if len(unrecorded) > MOST_REFUSALS else ''}. Take them for what is asked for, after a look at the "
                f"files:\n  nnunet-glims compare run {self.layout.path} --adopt\n"
                f"or make them again:\n  nnunet-glims compare run {self.layout.path} --again {' '.join(unrecorded)}"
            )


def _with_reason(name: str, outcome: Outcome) -> str:
    return name if outcome.change is None else f"{name} ({outcome.change})"
