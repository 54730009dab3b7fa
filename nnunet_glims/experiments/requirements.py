"""Check before anything runs what the jobs of a comparison will need: programs, a device, data, plans and splits."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.comparison import Entry
from nnunet_glims.experiments.layout import Layout
from nnunet_glims.nnunet.dataset_json import read_dataset_json
from nnunet_glims.nnunet.plans.configuration import (
    BASE_PLANS,
    check_complete,
    check_fits_strides,
    check_is_3d,
    read_plans,
)
from nnunet_glims.nnunet.plans.content import resolved
from nnunet_glims.nnunet.plans.override import check_override
from nnunet_glims.nnunet.splits import FOLDS, read_splits
from nnunet_glims.processes import find_program
from nnunet_glims.validation import nearest


def check_machine(layout: Layout, executor: str) -> None:
    """Check that this machine can run or submit the jobs.

    Args:
        layout: the comparison.
        executor: "local" or "slurm".

    Raises:
        UsageError: a program, the device or enough GPUs are missing, or a folder cannot be written.
    """
    if executor == "slurm":
        for program in ("sbatch", "squeue"):
            if shutil.which(program) is None:
                raise UsageError(f"--executor slurm: there is no {program} here: run this where SLURM's commands are")
    else:
        if not os.access(find_program("nnUNetv2_train"), os.X_OK):
            raise UsageError("there is no nnUNetv2_train here: activate the environment that has nnU-Net")
        _check_device(layout)
    for folder in (layout.state.parent, layout.preprocessed, layout.results):
        place = next(one for one in (folder, *folder.parents) if one.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise UsageError(f"{layout.path}: {folder}: results cannot be written there")


def _check_device(layout: Layout) -> None:
    asked = layout.comparison
    if asked.device == "cpu":
        return
    import torch

    if asked.device == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError(f"{layout.path}: device: mps: torch finds none on this machine. Ask for cpu or cuda")
        return
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < max(1, asked.resources.gpus):
        raise UsageError(
            f"{layout.path}: device: cuda: resources ask for {max(1, asked.resources.gpus)} GPU, and torch finds {there} on "
            f"this machine. Ask for fewer, or for device: cpu"
        )


def check_data(layout: Layout) -> None:
    """Check the data sets of a comparison, as far as they are prepared.

    Raises:
        UsageError: a data set has no valid dataset.json or too few cases, base plans are missing or do not fit an entry, or
            the splits lack a fold or name cases that do not exist.
    """
    for number, name in layout.dataset_names.items():
        raw, prepared = layout.raw / name, layout.dataset(number)
        descriptions = [folder / "dataset.json" for folder in (raw, prepared) if (folder / "dataset.json").exists()]
        if not descriptions:
            raise UsageError(f"{raw / 'dataset.json'}: there is no such file: data set {name} is not complete")
        contents = [read_dataset_json(path) for path in descriptions]
        for entry in layout.comparison.entries:
            _check_plans(layout, number, entry)
        _check_splits(layout, number, raw / "labelsTr", contents[0]["file_ending"])


def _check_plans(layout: Layout, number: int, entry: Entry) -> None:
    folder = layout.dataset(number)
    path = folder / f"{entry.plans}.json"
    if not path.exists():
        if entry.plans != BASE_PLANS:
            raise UsageError(
                f"{layout.path}: entry {entry.name}: plans: there is no {path}: compare makes {BASE_PLANS} only. Make these "
                f"with nnUNetv2_plan_experiment first, or leave plans out"
            )
        _check_override(layout, number, entry)
        return
    plans = read_plans(path)
    found = plans["configurations"]
    if entry.configuration not in found:
        raise UsageError(
            f"{layout.path}: entry {entry.name}: configuration {entry.configuration!r} is not in {path}: "
            f"{nearest(entry.configuration, list(found))}"
        )
    try:
        check_complete(plans, entry.configuration)
        if entry.network is not None:
            check_is_3d(plans, entry.configuration)
        elif entry.override is None:
            check_fits_strides(resolved(found, entry.configuration), str(path))
    except UsageError as error:
        raise UsageError(f"{layout.path}: entry {entry.name}: {error}") from None
    _check_override(layout, number, entry)
    stage = resolved(found, entry.configuration).get("previous_stage")
    if stage is not None:
        model = layout.results / layout.dataset_names[number] / f"{entry.trainer}__{entry.plans}__{stage}"
        if not (model / "predicted_next_stage" / entry.configuration).is_dir():
            raise UsageError(
                f"{layout.path}: entry {entry.name}: {entry.configuration} is the second stage of a cascade, and the first "
                f"one, {model}, has not predicted for it. compare trains no first stages: train all folds of it before"
            )


def _check_override(layout: Layout, number: int, entry: Entry) -> None:
    """Check an override whose plans are not there yet; plans that are there were checked when they were written."""
    if entry.override is None or layout.plans(number, entry, layout.comparison.seeds[0]).exists():
        return
    try:
        check_override(layout.dataset(number), entry.override, entry.configuration, entry.plans)
    except UsageError as error:
        raise UsageError(f"{layout.path}: entry {entry.name}: {error}") from None


def _check_splits(layout: Layout, number: int, labels: Path, ending: str) -> None:
    """Check the splits that are there, or that nnU-Net can draw some."""
    path = layout.dataset(number) / "splits_final.json"
    cases = {file.name.removesuffix(ending) for file in labels.glob(f"*{ending}")} if labels.is_dir() else set()
    if not path.exists():
        if cases and len(cases) < FOLDS:
            raise UsageError(
                f"{labels}: {len(cases)} cases are too few: nnU-Net draws {FOLDS} folds. Write your own {path}"
            )
        return
    folds = read_splits(path)
    for fold in layout.comparison.folds:
        if fold >= len(folds):
            raise UsageError(f"{layout.path}: folds: {path} has {len(folds)} folds, counted from 0, and no fold {fold}")
        named = [*folds[fold].train, *folds[fold].val]
        repeated = sorted(name for name, times in Counter(named).items() if times > 1)
        if repeated:
            raise UsageError(
                f"{path}: fold {fold}: {', '.join(repeated[:5])}: a case is named once, in train or in val, so that none is "
                "validated that was trained with"
            )
        unknown = sorted(set(named) - cases) if cases else []
        if unknown:
            raise UsageError(f"{path}: fold {fold}: {labels} has no case {', '.join(unknown[:5])} of it")
        if not folds[fold].train or not folds[fold].val:
            raise UsageError(f"{path}: fold {fold}: no cases to train with, or none to validate with")
