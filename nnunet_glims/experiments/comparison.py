"""Read the YAML file of a comparison and check it. Error messages name the line and the key."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.protocol import preset_named
from nnunet_glims.files import check_output_file, read_yaml_document, write_text
from nnunet_glims.networks import Network, network_named, network_of_trainer, networks, trained_by
from nnunet_glims.nnunet.plans.content import PlansName
from nnunet_glims.nnunet.plans.override import load_override, overridden_plans_name
from nnunet_glims.nnunet.trainers import check_trainer
from nnunet_glims.training.recipes import Recipe
from nnunet_glims.validation import list_problems, validate

MOST_TRAININGS = 10_000
MOST_LETTERS = 200
"""Largest number of letters of a name that is made of several; file systems take 255."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

TEMPLATE = """\
# A comparison: every entry is trained on every data set, in every fold and with every seed.
# nnunet-glims compare plan FILE shows what that means, nnunet-glims compare run FILE does it.
title: GLIMS and LATUP-Net

datasets: [137]             # numbers of data sets in nnUNet_raw

entries:
  - name: GLIMS             # in tables; letters, digits, _ . -
    trainer: nnUNetTrainerGLIMS
    # configuration: 3d_fullres
    # override: glims_brats # a plans override, by name or as a .json file
    # training: {epochs: 300, iterations_per_epoch: 250}   # recipe settings, for our trainers
  - name: LATUP-Net
    trainer: nnUNetTrainerLATUPNet
  - name: nnU-Net
    trainer: nnUNetTrainer

folds: [0, 1, 2, 3, 4]
# seeds: [1, 2, 3]          # each is a training of its own; our trainers only
device: cuda                # cuda, cpu or mps
evaluation: default         # a preset of nnunet-glims evaluate
# ensembles:                # by nnU-Net, of the entries' validation predictions
#   - [GLIMS, LATUP-Net]
# published: [GLIMS, LATUPNet]   # published figures below the table

resources:                  # what one job may use
  gpus: 1
  cpus: 8
  memory_gb: 32
  hours: 24                 # SLURM's time limit; a training that needs longer goes on in a new job
# parallel: 2               # trainings at once on one machine; default: one a GPU, one on CPUs

# slurm:                    # with --executor slurm
#   partition: gpu
#   gpu_type: a100
#   additional: {account: my_project}
"""


class Entry(BaseModel):
    """One entry of a comparison: a trainer with its plans.

    Attributes:
        name: name of the entry in tables and file names.
        trainer: name of the nnU-Net trainer class.
        plans: name of the base plans.
        override: a plans override for these plans, by name or as a path ending in .json, relative to the YAML file.
        configuration: name of the configuration in the plans, such as 3d_fullres.
        training: recipe settings to change; only trainers of this package have a recipe.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    trainer: str = Field(pattern=r"^[A-Za-z]\w*$", max_length=100)
    plans: PlansName = "nnUNetPlans"
    override: str | None = None
    configuration: PlansName = "3d_fullres"
    training: dict[str, Any] = {}

    @field_validator("trainer")
    @classmethod
    def _check_trainer(cls, trainer: str) -> str:
        check_trainer(trainer)
        return trainer

    @field_validator("configuration")
    @classmethod
    def _check_is_3d(cls, configuration: str, before: ValidationInfo) -> str:
        network = network_of_trainer(before.data.get("trainer", ""))
        if network is not None and configuration.startswith("2d"):
            raise ValueError(f"{configuration} is two-dimensional, and {network.name} is a 3D network: use 3d_fullres")
        return configuration

    @field_validator("training")
    @classmethod
    def _check_training(cls, training: dict[str, Any], before: ValidationInfo) -> dict[str, Any]:
        if training and "trainer" in before.data:
            _check_follows_recipes(before.data["trainer"])
        return training

    @property
    def network(self) -> Network | None:
        """The network that the trainer trains; None where the trainer does not follow a recipe, such as nnU-Net's own."""
        return network_of_trainer(self.trainer)


def _check_follows_recipes(trainer: str) -> None:
    if network_of_trainer(trainer) is None:
        ours = ", ".join(name for network in networks() for name in network.trainers)
        raise ValueError(f"{trainer} follows no recipe: training settings and seeds are for {ours}")


class Resources(BaseModel):
    """The resources of one job.

    Attributes:
        gpus: number of GPUs of a training.
        cpus: number of processor cores.
        memory_gb: memory in GB, for SLURM.
        hours: SLURM's time limit. A training that needs longer is continued in a new job.
    """

    model_config = ConfigDict(extra="forbid")

    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    cpus: Annotated[int, Field(ge=1, le=1024)] = 8
    memory_gb: Annotated[float, Field(gt=0, le=100_000)] = 32
    hours: Annotated[float, Field(gt=0, le=10_000)] = 24


class SlurmSettings(BaseModel):
    """Where and how SLURM runs jobs.

    Attributes:
        partition: name of the partition; None takes the cluster's default.
        gpu_type: type of GPU, as in --gres gpu:TYPE:N; None takes any.
        at_once: largest number of trainings of a data set that run at the same time.
        array_size: largest number of jobs in one array, below the cluster's MaxArraySize. More jobs are split into several
            arrays.
        additional: further options of sbatch, without leading dashes.
        setup: shell lines that run before each job, such as `module load`.
        signal_seconds: seconds before the time limit at which a training is told to save.
        requeues: how often a training may be continued in a new job.
    """

    model_config = ConfigDict(extra="forbid")

    partition: str | None = None
    gpu_type: str | None = None
    at_once: Annotated[int, Field(ge=1)] = 256
    array_size: Annotated[int, Field(ge=1)] = 1000
    additional: dict[str, Any] = {}
    setup: list[str] = []
    signal_seconds: Annotated[int, Field(ge=1)] = 120
    requeues: Annotated[int, Field(ge=0)] = 100


class Comparison(BaseModel):
    """The content of the YAML file.

    Attributes:
        title: title of the leaderboard.
        datasets: numbers of the data sets.
        entries: the entries to compare.
        folds: the folds to train.
        seeds: seeds of the trainings, one training for each; None stands for a training without a seed.
        device: "cuda", "cpu" or "mps".
        evaluation: name of the preset of the evaluation.
        ensembles: names of the entries of each ensemble.
        published: names of networks whose published figures the leaderboard shows.
        resources: the resources of one job.
        parallel: number of jobs at the same time on one machine; None means one for each GPU, or one without GPUs.
        slurm: settings of SLURM.
    """

    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, Field(max_length=MOST_LETTERS)] = "Comparison"
    datasets: Annotated[list[Annotated[int, Field(ge=1, le=999)]], Field(min_length=1)]
    entries: Annotated[list[Entry], Field(min_length=1)]
    folds: Annotated[list[Annotated[int, Field(ge=0, le=4)]], Field(min_length=1)] = [0, 1, 2, 3, 4]
    seeds: Annotated[list[Seed | None], Field(min_length=1)] = [None]
    device: Literal["cuda", "cpu", "mps"] = "cuda"
    evaluation: str = "default"
    ensembles: list[Annotated[list[str], Field(min_length=2)]] = []
    published: list[str] = []
    resources: Resources = Resources()
    parallel: Annotated[int, Field(ge=1, le=1000)] | None = None
    slurm: SlurmSettings = SlurmSettings()

    @field_validator("datasets", "folds", "seeds", "entries")
    @classmethod
    def _check_once(cls, values: list[Any]) -> list[Any]:
        counts = Counter(getattr(value, "name", value) for value in values)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice")
        return values

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[Seed | None], before: ValidationInfo) -> list[Seed | None]:
        for entry in before.data.get("entries", []) if seeds != [None] else []:
            _check_follows_recipes(entry.trainer)
        return seeds

    @field_validator("ensembles")
    @classmethod
    def _check_ensembles(cls, ensembles: list[list[str]], before: ValidationInfo) -> list[list[str]]:
        names = [entry.name for entry in before.data.get("entries", [])]
        seen: list[set[str]] = []
        for members in ensembles:
            for name in members:
                if names and name not in names:
                    raise ValueError(f"there is no entry {name!r}")
                if members.count(name) > 1:
                    raise ValueError(f"{name!r} is there twice in one ensemble")
            if set(members) in seen:
                raise ValueError(f"the ensemble of {' and '.join(members)} is there twice")
            seen.append(set(members))
            if len("+".join(members)) > MOST_LETTERS:
                raise ValueError(f"the names of {members[0]} and the others are too long for the name of a folder")
        return ensembles

    @field_validator("published")
    @classmethod
    def _check_published(cls, published: list[str]) -> list[str]:
        for name in published:
            network_named(name)
        return cls._check_once(published)

    @model_validator(mode="after")
    def _check_number(self) -> Comparison:
        trainings = len(self.datasets) * len(self.entries) * len(self.folds) * len(self.seeds)
        if trainings > MOST_TRAININGS:
            raise ValueError(f"{trainings:,} trainings are too many: a comparison may have {MOST_TRAININGS:,}")
        if self.device == "cuda" and self.resources.gpus == 0:
            raise ValueError("device cuda needs a GPU, and resources say gpus: 0. Ask for one, or for device: cpu")
        return self

    @field_validator("evaluation")
    @classmethod
    def _check_evaluation(cls, evaluation: str) -> str:
        preset_named(evaluation)
        return evaluation


def write_template(path: Path) -> None:
    """Write a commented comparison file to edit; raise `UsageError` if the file exists or its folder does not."""
    if os.path.exists(path):
        raise UsageError(f"{path}: this file is there already")
    check_output_file(path)
    write_text(path, TEMPLATE)


def read_comparison(path: Path) -> Comparison:
    """Read a comparison and check it. Paths of overrides are made absolute.

    Raises:
        UsageError: the file is missing, is not YAML, or has wrong content. The message lists every problem with line and key.
    """
    if not os.path.exists(path):
        raise UsageError(f"{path}: there is no such file. nnunet-glims compare init {path} writes one")
    document = read_yaml_document(path)
    comparison = validate(Comparison, document.content, str(path), document.line_of)
    problems: list[tuple[list[Any], str]] = []
    for number, entry in enumerate(comparison.entries):
        for key, check in (("override", _check_override), ("training", _check_training)):
            try:
                check(entry, path)
            except UsageError as error:
                problems += [
                    (["entries", number, key], f"entry {entry.name}: {line}") for line in str(error).splitlines()
                ]
    if problems:
        raise UsageError(list_problems(problems, str(path), document.line_of))

    def where(number: int, key: str) -> str:
        name = comparison.entries[number].name
        return f"{path}:{document.line_of(['entries', number, key])}: entries.{number}.{key}: entry {name}"

    _check_names(comparison, path, where)
    return comparison


def _check_override(entry: Entry, path: Path) -> None:
    """Make the path of an entry's override absolute; raise `UsageError` if it is wrong or not for the entry's trainer."""
    if entry.override is None:
        return
    if entry.override.endswith(".json"):
        entry.override = str((path.parent / entry.override).resolve())
    override = load_override(entry.override)[1]
    if override.network is None or entry.network is None:
        return
    network, fixed = trained_by(entry.trainer)
    if network.name != network_named(override.network).name:
        raise UsageError(f"{entry.override} is for {override.network}, and {entry.trainer} trains {network.name}")
    for name, value in fixed.items():
        if override.network_arguments.get(name, value) != value:
            raise UsageError(
                f"{entry.override}: network_arguments: {name} is {override.network_arguments[name]!r}, and "
                f"{entry.trainer} trains with {value!r}"
            )


def _check_training(entry: Entry, path: Path) -> None:
    """Raise `UsageError` if the recipe settings of an entry are wrong."""
    if entry.training:
        Recipe().changed(entry.training, "training")


def _check_names(comparison: Comparison, path: Path, where: Callable[[int, str], str]) -> None:
    """Raise `UsageError` where two names would lead to the same file or folder, also on disks that ignore capital letters."""
    jobs: dict[str, tuple[int, Seed | None]] = {}
    models: dict[str, tuple[int, Seed | None]] = {}
    overrides: dict[str, tuple[int, tuple[Any, ...]]] = {}
    for number, entry in enumerate(comparison.entries):
        for seed in comparison.seeds:
            here = (number, seed)
            job = seeded_name(entry, seed).lower()
            if jobs.setdefault(job, here) != here:
                other = _described(comparison, jobs[job])
                raise UsageError(f"{where(number, 'name')}: its files would have the names of those of {other}")
            plans = plans_name(path, entry, seed)
            model = f"{entry.trainer}__{plans}__{entry.configuration}"
            if models.setdefault(model.lower(), here) != here:
                other = _described(comparison, models[model.lower()])
                key = "override" if entry.override is not None else "trainer"
                raise UsageError(
                    f"{where(number, key)}: it would share the model folder {model} with {other}: both have this trainer, "
                    "plans and configuration. Leave one out, or give one an override of its own"
                )
            made_with = (entry.plans, entry.override if seed is None and not entry.training else job)
            if overrides.setdefault(plans.lower(), (number, made_with))[1] != made_with:
                other = comparison.entries[overrides[plans.lower()][0]].name
                raise UsageError(
                    f"{where(number, 'override' if entry.override is not None else 'plans')}: its plans would be {plans}, "
                    f"and so would those of entry {other}, which are made otherwise: rename one of the files or entries"
                )


def _described(comparison: Comparison, of: tuple[int, Seed | None]) -> str:
    number, seed = of
    return f"entry {comparison.entries[number].name}" + ("" if seed is None else f" with seed {seed}")


def seeded_name(entry: Entry, seed: Seed | None) -> str:
    """Return the part that an entry and a seed contribute to the names of jobs and files."""
    return file_name(entry.name) + ("" if seed is None else f"_seed{seed}")


def plans_name(path: Path, entry: Entry, seed: Seed | None) -> str:
    """Return the name of the plans that an entry of the comparison in the file `path` is trained with."""
    if entry.training or seed is not None:
        return overridden_plans_name(derived_override_name(path, entry, seed), entry.plans)
    if entry.override is not None:
        return overridden_plans_name(Path(entry.override).name.removesuffix(".json"), entry.plans)
    return entry.plans


def derived_override_name(path: Path, entry: Entry, seed: Seed | None) -> str:
    """Return the name of the override that adds an entry's settings and seed."""
    return f"{file_name(path.stem)}_{seeded_name(entry, seed)}"


def file_name(text: str) -> str:
    """Return the text with every character other than letters, digits, _ . and - replaced, for use in file names."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
