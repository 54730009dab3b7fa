"""The jobs of a comparison: what each needs, which nnU-Net commands do it, and the proof on disk that it is done."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.comparison import Comparison, Entry, file_name, read_comparison
from nnunet_glims.experiments.step import Step
from nnunet_glims.files import read_json, write_json
from nnunet_glims.nnunet.plans.configuration import BASE_PLANS
from nnunet_glims.nnunet.plans.override import load_override

Kind = Literal["prepare", "train", "evaluate", "ensemble", "report"]
KINDS: tuple[Kind, ...] = ("prepare", "train", "evaluate", "ensemble", "report")
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Job:
    """One step of a comparison.

    Attributes:
        name: of the job and of its log file.
        needs: jobs that must be done before.
        dataset: number of the data set.
        entries: names of the entries it is about.
        seed, fold: of a training.
    """

    name: str
    kind: Kind
    needs: tuple[str, ...]
    dataset: int
    entries: tuple[str, ...] = ()
    seed: int | None = None
    fold: int | None = None


class Plan:
    """A comparison, its jobs and its folders.

    Attributes:
        path: of the YAML file.
        comparison: its content.
        state: folder beside it with logs, derived overrides and the report.

    Raises:
        UsageError: when it is made: nnU-Net's variables are not set, or a data set is nowhere.
    """

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.comparison: Comparison = read_comparison(path)
        missing = [name for name in FOLDERS if not os.environ.get(name)]
        if missing:
            raise UsageError(f"the environment variable {missing[0]} is not set: nnU-Net needs {', '.join(FOLDERS)}")
        self.raw, self.preprocessed, self.results = (Path(os.environ[name]) for name in FOLDERS)
        self.state = self.path.with_suffix(".run")
        self.dataset_names = {number: self._dataset_name(number) for number in self.comparison.datasets}
        self._entries = {entry.name: entry for entry in self.comparison.entries}

    def _dataset_name(self, number: int) -> str:
        found = {
            path.name for folder in (self.raw, self.preprocessed) for path in folder.glob(f"Dataset{number:03d}_*")
        }
        if len(found) != 1:
            what = (
                f"{len(found)} data sets have that number: {', '.join(sorted(found))}"
                if found
                else "there is no such data set"
            )
            raise UsageError(f"{self.path}: datasets: {number}: {what} in {self.raw} and {self.preprocessed}")
        return found.pop()

    # ---- jobs

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """Name -> job, in an order in which they can be done."""
        return {job.name: job for job in self._jobs()}

    def _jobs(self) -> Iterator[Job]:
        asked = self.comparison
        for number in asked.datasets:
            dataset = f"D{number:03d}"
            prepare = Job(f"prepare_{dataset}", "prepare", (), number)
            yield prepare
            evaluations = []
            for seed in asked.seeds:
                seeded = "" if seed is None else f"_seed{seed}"
                trainings: dict[str, list[str]] = {}
                for entry in asked.entries:
                    name = f"{dataset}_{file_name(entry.name)}{seeded}"
                    folds = [
                        Job(f"train_{name}_fold{fold}", "train", (prepare.name,), number, (entry.name,), seed, fold)
                        for fold in asked.folds
                    ]
                    yield from folds
                    trainings[entry.name] = [job.name for job in folds]
                    evaluate = Job(
                        f"evaluate_{name}", "evaluate", tuple(trainings[entry.name]), number, (entry.name,), seed
                    )
                    yield evaluate
                    evaluations.append(evaluate.name)
                for members in asked.ensembles:
                    needs = tuple(job for member in members for job in trainings[member])
                    name = f"{dataset}_{'+'.join(map(file_name, members))}{seeded}"
                    ensemble = Job(f"ensemble_{name}", "ensemble", needs, number, tuple(members), seed)
                    yield ensemble
                    evaluations.append(ensemble.name)
            yield Job(f"report_{dataset}", "report", tuple(evaluations), number)

    def job_named(self, name: str) -> Job:
        """The job of that name; raises `UsageError` with the nearest right one."""
        from nnunet_glims.validation import nearest

        if name not in self.jobs:
            raise UsageError(f"job {name!r} is unknown: {nearest(name, list(self.jobs))}")
        return self.jobs[name]

    # ---- where things are

    def log(self, job: Job) -> Path:
        """What the job's commands print."""
        return self.state / "logs" / f"{job.name}.log"

    def cancelled(self, job: Job) -> Path:
        """The file that says that the job is not to go on."""
        return self.state / "cancelled" / job.name

    def mark_cancelled(self, job: Job) -> None:
        """Write that file."""
        marker = self.cancelled(job)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()

    def model(self, number: int, entry: Entry, seed: int | None) -> Path:
        """The model folder of an entry."""
        name = f"{entry.trainer}__{self.plans_name(entry, seed)}__{entry.configuration}"
        return self.results / self.dataset_names[number] / name

    def fold(self, job: Job) -> Path:
        """The folder of a training."""
        return self.model(job.dataset, self._entries[job.entries[0]], job.seed) / f"fold_{job.fold}"

    def plans_name(self, entry: Entry, seed: int | None) -> str:
        """Of the plans that an entry is trained with."""
        if entry.training or seed is not None:
            return f"{BASE_PLANS}_{self._derived_name(entry, seed)}"
        if entry.override is not None:
            return f"{BASE_PLANS}_{Path(entry.override).name.removesuffix('.json')}"
        return entry.plans

    def _derived_name(self, entry: Entry, seed: int | None) -> str:
        seeded = "" if seed is None else f"_seed{seed}"
        return f"{file_name(self.path.stem)}_{file_name(entry.name)}{seeded}"

    def ensemble(self, job: Job) -> Path:
        """The folder of an ensemble's predictions."""
        return self.state / "ensembles" / job.name.removeprefix("ensemble_")

    def report(self, number: int) -> Path:
        """The folder of a data set's leaderboard."""
        return self.state / "report" / self.dataset_names[number]

    # ---- proofs

    def is_done(self, job: Job) -> bool:
        """Whether the job's results are on disk."""
        if job.kind == "train":
            fold = self.fold(job)
            made = (fold / "checkpoint_final.pth").exists() and (fold / "validation/summary.json").exists()
            return made and (not self._in_ensemble(job) or any((fold / "validation").glob("*.npz")))
        if job.kind == "prepare":
            return self._is_prepared(job.dataset)
        if job.kind == "report":
            made_of = [self._summary(self.jobs[name]) for name in job.needs]
            return _newer(self.report(job.dataset) / "leaderboard.html", made_of)
        made_of = [self.fold(self.jobs[name]) / "validation/summary.json" for name in job.needs]
        return _newer(self._summary(job), made_of)

    def _summary(self, job: Job) -> Path:
        """Of an evaluation or an ensemble."""
        if job.kind == "ensemble":
            return self.ensemble(job) / "evaluation/summary.json"
        return self.model(job.dataset, self._entries[job.entries[0]], job.seed) / "evaluation/summary.json"

    def _is_prepared(self, number: int) -> bool:
        folder = self.preprocessed / self.dataset_names[number]
        if not (folder / "splits_final.json").exists():
            return False
        needed = {
            (folder / f"{self.plans_name(entry, seed)}.json", entry.configuration)
            for entry in self.comparison.entries
            for seed in self.comparison.seeds
        }
        if not all(plans.exists() for plans, _ in needed):
            return False
        return all(
            is_preprocessed(folder, name)
            for name in {data_identifier(read_json(plans), name) for plans, name in needed}
        )

    def _in_ensemble(self, job: Job) -> bool:
        return any(job.entries[0] in ensemble for ensemble in self.comparison.ensembles)

    # ---- commands

    def step(self, job: Job, commands: Sequence[Sequence[str]] | None = None, **environment: str) -> Step:
        """What an executor runs for the job: its commands, or others, with more variables."""
        chosen = self.commands(job) if commands is None else commands
        return Step(chosen, self.log(job), {**self.environment(job), **environment}, self.cancelled(job))

    def environment(self, job: Job) -> dict[str, str]:
        """Variables to set for the job's commands."""
        if job.kind == "prepare" and os.environ.get("nnUNet_n_proc_DA") == "0":
            return {"nnUNet_n_proc_DA": "1"}  # nnU-Net trains with none, but its planner breaks
        return {}

    def commands(self, job: Job) -> list[list[str]]:
        """What does the job, one command after the other. Each is nnU-Net's or one of this package."""
        return {
            "prepare": self._prepare,
            "train": self._train,
            "evaluate": self._evaluate,
            "ensemble": self._ensemble,
            "report": self._report,
        }[job.kind](job)

    def _prepare(self, job: Job) -> list[list[str]]:
        asked = self.comparison
        number = str(job.dataset)
        folder = self.preprocessed / self.dataset_names[job.dataset]
        processes = ["-np", str(asked.resources.cpus)]
        configurations = list(dict.fromkeys(entry.configuration for entry in asked.entries))
        commands = []
        base = folder / f"{BASE_PLANS}.json"
        if not base.exists() or not all(
            is_preprocessed(folder, data_identifier(read_json(base), name)) for name in configurations
        ):
            commands.append(
                ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", *configurations, "--verify_dataset_integrity",
                 "-npfp", str(asked.resources.cpus), *processes]
            )  # fmt: skip
        commands.append([sys.executable, "-m", "nnunet_glims.experiments.prepare", str(self.path), number])
        return commands

    def overrides(self) -> Iterator[tuple[Entry, str]]:
        """Entries whose plans an override makes, with the override: its name, or a file that is written here."""
        for entry in self.comparison.entries:
            for seed in self.comparison.seeds:
                if not entry.training and seed is None:
                    if entry.override is not None:
                        yield entry, entry.override
                    continue
                if entry.override is not None:
                    content = load_override(entry.override)[1].model_dump(exclude_defaults=True)
                else:
                    content = {"description": entry.name, "source": str(self.path)}
                assert entry.network is not None, "checked with the file"
                content.setdefault("network", entry.network.name)
                content["training"] = {**content.get("training", {}), **entry.training}
                if seed is not None:
                    content["training"]["seed"] = seed
                path = self.state / "plans" / f"{self._derived_name(entry, seed)}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, content)
                yield entry, str(path)

    def _train(self, job: Job) -> list[list[str]]:
        asked = self.comparison
        entry = self._entries[job.entries[0]]
        command = [
            "nnUNetv2_train", self.dataset_names[job.dataset], entry.configuration, str(job.fold), "-tr", entry.trainer,
            "-p", self.plans_name(entry, job.seed), "-device", asked.device, "--c",
        ]  # fmt: skip
        if asked.device == "cuda" and asked.resources.gpus > 1:
            command += ["-num_gpus", str(asked.resources.gpus)]
        if self._in_ensemble(job):
            command.append("--npz")
        return [command]

    def _evaluate(self, job: Job) -> list[list[str]]:
        entry = self._entries[job.entries[0]]
        folds = ",".join(str(fold) for fold in self.comparison.folds)
        command = [
            "nnunet-glims",
            "evaluate",
            "--model",
            str(self.model(job.dataset, entry, job.seed)),
            "--folds",
            folds,
        ]
        return [[*command, "--preset", self.comparison.evaluation, "--workers", str(self.comparison.resources.cpus)]]

    def _ensemble(self, job: Job) -> list[list[str]]:
        folder = self.ensemble(job)
        models = [str(self.model(job.dataset, self._entries[name], job.seed)) for name in job.entries]
        folds = [str(fold) for fold in self.comparison.folds]
        truths = self.preprocessed / self.dataset_names[job.dataset] / "gt_segmentations"
        return [
            [sys.executable, "-m", "nnunet_glims.experiments.ensemble", str(folder), *models, "--folds", *folds],
            ["nnunet-glims", "evaluate", str(truths), str(folder), "--preset", self.comparison.evaluation,
             "--only-predicted", "--workers", str(self.comparison.resources.cpus)],
        ]  # fmt: skip

    def _report(self, job: Job) -> list[list[str]]:
        return self.report_commands(job, job.needs)

    def report_commands(self, job: Job, evaluations: Sequence[str]) -> list[list[str]]:
        """The leaderboard of some evaluations; of fewer than all, on the cases that they share."""
        entries = []
        for name in evaluations:
            made = self.jobs[name]
            title = "+".join(made.entries) + ("" if made.seed is None else f" (seed {made.seed})")
            entries.append(f"{title}={self._summary(made).parent.parent}")
        command = ["nnunet-glims", "leaderboard", *entries, "-o", str(self.report(job.dataset))]
        command += ["--title", f"{self.comparison.title}: {self.dataset_names[job.dataset]}"]
        if self.comparison.published:
            command += ["--published", ",".join(self.comparison.published)]
        return [command if len(evaluations) == len(job.needs) else [*command, "--intersection"]]


def data_identifier(plans: Mapping[str, Any], configuration: str) -> str:
    """Name of the folder of preprocessed data that a configuration uses."""
    configurations = plans["configurations"]
    if configuration not in configurations:
        raise UsageError(
            f"{plans['plans_name']}: there is no configuration {configuration!r}, only {', '.join(configurations)}"
        )
    own = configurations[configuration]
    return own["data_identifier"] if "data_identifier" in own else data_identifier(plans, own["inherits_from"])


def is_preprocessed(folder: Path, data: str) -> bool:
    """Whether all cases are in a data set's folder of preprocessed data. nnU-Net writes a case's .pkl last."""
    cases = read_json(folder / "dataset.json")["numTraining"]
    return len(list((folder / data).glob("*.pkl"))) >= cases


def _newer(made: Path, made_of: Sequence[Path]) -> bool:
    """Whether a file is there and at least as new as all that it was made of."""
    if not made.exists():
        return False
    time = made.stat().st_mtime_ns
    return all(path.exists() and path.stat().st_mtime_ns <= time for path in made_of)
