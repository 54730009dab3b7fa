"""The cases of an evaluation: those of two folders, and the validation cases of a model that nnU-Net trained."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nnunet_glims.errors import ProcessingError, UsageError, listed
from nnunet_glims.evaluation.results import CaseFiles
from nnunet_glims.nnunet.folders import PREPROCESSED, RAW, case_of, find_dataset_json, label_maps, other_files
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.nnunet.splits import read_splits
from nnunet_glims.validation import read_model

_LISTED = 5
"""Largest number of cases that a remark names."""


@dataclass(frozen=True)
class Folds:
    """The folds of a cross-validation that are evaluated.

    Attributes:
        evaluated: their numbers.
        count: number of folds in splits_final.json; None where there is no such file, or the model was trained with others.
        cases: number of cases that all these folds validate; None as for `count`.
    """

    evaluated: Sequence[int]
    count: int | None = None
    cases: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the folds as summary.json has them."""
        return {"evaluated": list(self.evaluated), "count": self.count, "cases": self.cases}


@dataclass(frozen=True)
class Cases:
    """The cases to evaluate.

    Attributes:
        files: the cases, sorted by name. A case that several folds predicted is there for each of them.
        without_truth: predictions that no true label map belongs to.
        dataset_json: the content of nnU-Net's dataset.json; None where none was found.
        folders: the folders of the predictions.
        folds: the folds of a model; None for two folders.
        other_files: files in these folders that are neither label maps nor written beside them by nnU-Net.
        remarks: sentences about predictions that do not fit the present splits.
    """

    files: Sequence[CaseFiles]
    without_truth: Sequence[Path]
    dataset_json: Mapping[str, Any] | None
    folders: Sequence[Path]
    folds: Folds | None = None
    other_files: Sequence[Path] = ()
    remarks: Sequence[str] = ()


def cases_of_folders(truths: Path, predictions: Path) -> Cases:
    """Return the cases of two folders whose files have the same names. A true label map without a prediction is a case too.

    Raises:
        UsageError: a folder is missing, given twice, or has no label maps, a case has two files, or no prediction belongs to
            a true label map.
    """
    truths, predictions = truths.resolve(), predictions.resolve()
    for folder in (truths, predictions):
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
    if truths == predictions:
        raise UsageError(f"{truths}: the same folder was given for the true and for the predicted label maps")
    dataset_json = find_dataset_json(predictions, truths, truths.parent)
    ending = None if dataset_json is None else dataset_json["file_ending"]
    true_files, predicted = label_maps(truths, ending), label_maps(predictions, ending)
    if not true_files:
        raise UsageError(f"{truths}: there are no label maps" + ("" if ending is None else f" that end in {ending}"))
    if not predicted.keys() & true_files.keys():
        raise UsageError(
            f"{predictions}: no file has the name of one in {truths}, such as {next(iter(true_files.values())).name}"
        )
    return Cases(
        [CaseFiles(name, truth, predicted.get(name)) for name, truth in true_files.items()],
        [file for name, file in predicted.items() if name not in true_files],
        dataset_json,
        [predictions],
        other_files=[*other_files(truths, ending), *other_files(predictions, ending)],
    )


def cases_of_model(model: Path, truths: Path | None = None, chosen: Sequence[int] | None = None) -> Cases:
    """Return the validation cases of all folds of a model that nnU-Net trained.

    What was predicted decides which cases a fold has. A case without a prediction is missing if nnU-Net's summary of the
    fold's validation lists it. Where a fold has no summary, because its validation was stopped, those cases are missing that
    splits_final.json has it validate and no fold predicted, unless a prediction does not fit these splits: then they were
    made anew after the training.

    Args:
        model: folder with plans.json, dataset.json and fold_0, fold_1 and so on.
        truths: folder of label maps; None looks for them in nnUNet_preprocessed and nnUNet_raw.
        chosen: the folds to take; None is all that were validated.

    Raises:
        UsageError: this is no model folder, no fold was validated, a case has two files, or the label maps cannot be found.
    """
    folder = ModelFolder(model.resolve())
    ending = folder.dataset_json["file_ending"]
    validations = {fold: path / "validation" for fold, path in folder.folds.items()}
    predicted = {fold: found for fold, path in validations.items() if (found := label_maps(path, ending))}
    if not predicted:
        raise UsageError(
            f"{model}: no fold has predictions of its validation cases (fold_0/validation/*{ending}); nnUNetv2_train with "
            "--val makes them. fold_all does not count: its validation cases were trained on"
        )
    missing = [fold for fold in chosen or () if fold not in predicted]
    if missing:
        raise UsageError(
            f"{model}: fold {missing[0]} has no predictions of its validation cases, only {', '.join(map(str, predicted))}"
        )
    folds = [fold for fold in predicted if chosen is None or fold in chosen]
    truths = _truths_of(folder.dataset) if truths is None else truths.resolve()
    true_files = label_maps(truths, ending)
    splits = _splits_of(folder.dataset)
    remarks = [] if splits is None else _misfits(predicted, splits)
    fitting = None if remarks else splits
    everywhere = {name for found in predicted.values() for name in found}
    files = []
    for fold in folds:
        found = predicted[fold]
        files += [CaseFiles(name, true_files[name], file, fold) for name, file in found.items() if name in true_files]
        planned = set() if fitting is None else fitting[fold]
        recorded = _recorded(validations[fold])
        for name in sorted((planned if recorded is None else recorded) - everywhere):
            if name not in true_files:
                raise UsageError(f"{truths}: there is no label map of case {name}, which fold {fold} validates on")
            files.append(CaseFiles(name, true_files[name], None, fold))
        if recorded is not None and (added := sorted(planned - recorded - everywhere)):
            remarks.append(
                f"the present splits_final.json has fold {fold} validate {_named(added)} more than it did: left out"
            )
    if not files:
        raise UsageError(f"{truths}: there is no label map of any case that {model} was validated on")
    return Cases(
        sorted(files, key=lambda case: case.name),
        [file for fold in folds for name, file in predicted[fold].items() if name not in true_files],
        folder.dataset_json,
        [validations[fold] for fold in folds],
        Folds(folds) if fitting is None else Folds(folds, len(fitting), len(set().union(*fitting))),
        [file for fold in folds for file in other_files(validations[fold], ending)],
        [*remarks, *_validated_twice({fold: predicted[fold] for fold in folds})],
    )


class _ValidatedCase(BaseModel):
    reference_file: str


class _Validation(BaseModel):
    """nnU-Net's summary.json of a validation, which it writes when all cases are predicted."""

    metric_per_case: list[_ValidatedCase] | None = None


def _recorded(validation: Path) -> set[str] | None:
    """Return the cases that nnU-Net validated in this folder; None where its summary is missing."""
    path = validation / "summary.json"
    if not path.is_file():
        return None
    listed = read_model(_Validation, path, ProcessingError, nan_allowed=True).metric_per_case
    return None if listed is None else {case_of(case.reference_file) for case in listed}


def _misfits(predicted: Mapping[int, Mapping[str, Path]], splits: Sequence[set[str]]) -> list[str]:
    """Return sentences about the predictions that do not fit the splits; empty where all fit."""
    found = []
    for fold, cases in predicted.items():
        if fold >= len(splits):
            found.append(f"fold {fold} was validated, and the present splits_final.json has {len(splits)} folds only")
        elif others := sorted(cases.keys() - splits[fold]):
            found.append(
                f"fold {fold} predicted {_named(others)}, which the present splits_final.json does not have it validate"
            )
    if not found:
        return []
    found.append(
        "the splits were made anew after the training: the cases that were predicted count, in the folds that predicted "
        "them, and none counts as missing"
    )
    if never := sorted(set().union(*splits) - {name for cases in predicted.values() for name in cases}):
        found.append(f"no fold predicted {_named(never)} of the present splits")
    return found


def _validated_twice(predicted: Mapping[int, Mapping[str, Path]]) -> list[str]:
    folds_of: dict[str, list[int]] = {}
    for fold, cases in predicted.items():
        for name in cases:
            folds_of.setdefault(name, []).append(fold)
    several = sorted(name for name, folds in folds_of.items() if len(folds) > 1)
    if not several:
        return []
    folds = sorted({fold for name in several for fold in folds_of[name]})
    return [
        f"several folds ({', '.join(map(str, folds))}) predicted {_named(several)}: each counts once, with its mean over "
        "these folds"
    ]


def _named(cases: Sequence[str]) -> str:
    """Return the number of cases and their names, of which the first few are listed."""
    return f"{len(cases)} case{'s' if len(cases) != 1 else ''} ({listed(cases, _LISTED)})"


def _truths_of(dataset: str) -> Path:
    found = PREPROCESSED.find(dataset, "gt_segmentations") or RAW.find(dataset, "labelsTr")
    if found is None:
        raise UsageError(
            f"the label maps of {dataset} are neither in nnUNet_preprocessed nor in nnUNet_raw: set these variables, or give "
            "the folder with --truth"
        )
    return found


def _splits_of(dataset: str) -> list[set[str]] | None:
    """Return the cases that each fold validates by splits_final.json; None where there is no such file."""
    path = PREPROCESSED.find(dataset, "splits_final.json")
    if path is None:
        return None
    return [{unicodedata.normalize("NFC", name) for name in fold.val} for fold in read_splits(path)]
