"""Evaluation of nnU-Net's results: folders of predictions, and the cross-validation of a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.protocol import protocol_for
from nnunet_glims.evaluation.regions import NAMED_REGIONS, Regions, regions_from, regions_named
from nnunet_glims.evaluation.results import CaseFiles, Results, Settings, evaluate_cases, read_results
from nnunet_glims.files import read_json
from nnunet_glims.nnunet.folders import (
    PREPROCESSED,
    RAW,
    find_dataset_json,
    ignored_label,
    label_maps,
    regions_of,
)
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.processes import Progress, quietly, workers_or_default

RESULTS_FOLDER = "evaluation"
"""Name of the folder for the results, in the folder that is evaluated."""


@dataclass(frozen=True)
class Cases:
    """The cases to evaluate.

    Attributes:
        files: the cases, sorted by name.
        without_truth: predictions that no true label map belongs to.
        dataset_json: the content of nnU-Net's dataset.json; None where none was found.
    """

    files: Sequence[CaseFiles]
    without_truth: Sequence[Path]
    dataset_json: Mapping[str, Any] | None


def evaluate_folders(
    truths: str | Path,
    predictions: str | Path,
    *,
    regions: Mapping[str, Sequence[int]] | str | Path | None = None,
    preset: str = "default",
    surface: str | None = None,
    penalty: str | None = None,
    tolerance: float | None = None,
    region_tolerances: Mapping[str, float] | None = None,
    only_predicted: bool = False,
    out: str | Path | None = None,
    workers: int | None = 1,
    progress: Progress = quietly,
) -> Results:
    """Evaluate a folder of predicted label maps against a folder of true ones with the same file names.

    Cases that were evaluated before are not computed again while their files and the settings are the same.

    Args:
        truths: folder of true label maps.
        predictions: folder of predicted label maps.
        regions: name -> labels; or "brats" or "brats-original"; or a JSON file. None takes those of dataset.json, which is
            looked for beside the predictions, beside the truths and one folder above the truths.
        preset: name of a preset, such as "brats2023-gli".
        surface: definition of surface distances, "surfels", "voxels" or "pooled"; None is the preset's.
        penalty: what distances count where one mask is empty, "diagonal", "brats2021", "brats2023" or "nan"; None is the
            preset's. Only the preset "default" takes another one.
        tolerance: tolerance of the normalised surface Dice in mm, for all regions; None is the preset's.
        region_tolerances: region -> tolerance in mm, for regions with a tolerance of their own.
        only_predicted: leave out cases without a prediction instead of counting them as empty.
        out: folder for the results; None is "evaluation" in the folder of predictions.
        workers: number of processes; None takes as many as cores and memory allow, at most 8. With more than one, a
            script needs the guard `if __name__ == "__main__":`.
        progress: shows how many cases are done.

    Returns:
        The results. Cases that could not be evaluated are listed in `summary["failed"]`.

    Raises:
        UsageError: a folder is missing or has no label maps, a setting is unknown, or the regions are not known.
    """
    predictions = Path(predictions)
    cases = cases_of_folders(Path(truths), predictions)
    searched = f"{predictions}, {truths} or above"
    settings = _settings(cases.dataset_json, searched, regions, preset, surface, penalty, tolerance, region_tolerances)
    out = predictions / RESULTS_FOLDER if out is None else Path(out)
    return _evaluate(cases, settings, only_predicted, out, workers, {"model": None}, progress)


def evaluate_model(
    model: str | Path,
    *,
    truths: str | Path | None = None,
    folds: Sequence[int] | None = None,
    regions: Mapping[str, Sequence[int]] | str | Path | None = None,
    preset: str = "default",
    surface: str | None = None,
    penalty: str | None = None,
    tolerance: float | None = None,
    region_tolerances: Mapping[str, float] | None = None,
    only_predicted: bool = False,
    out: str | Path | None = None,
    workers: int | None = 1,
    progress: Progress = quietly,
) -> Results:
    """Evaluate the validation cases of a model that nnU-Net trained, of all folds together.

    Args:
        model: model folder, with plans.json, dataset.json and fold_0, fold_1 and so on.
        truths: folder of true label maps; None looks for them in nnUNet_preprocessed and nnUNet_raw.
        folds: the folds to take; None takes all that were validated. fold_all never counts.
        regions: as for `evaluate_folders`, which describes the other arguments too.
        out: folder for the results; None is "evaluation" in the model folder.

    Raises:
        UsageError: this is no model folder, no fold was validated, label maps cannot be found, or a setting is unknown.
    """
    model = Path(model)
    cases = cases_of_model(model, None if truths is None else Path(truths), folds)
    settings = _settings(
        cases.dataset_json, str(model), regions, preset, surface, penalty, tolerance, region_tolerances
    )
    out = model / RESULTS_FOLDER if out is None else Path(out)
    return _evaluate(cases, settings, only_predicted, out, workers, {"model": str(model.resolve())}, progress)


def _evaluate(
    cases: Cases,
    settings: Settings,
    only_predicted: bool,
    out: Path,
    workers: int | None,
    origin: Mapping[str, Any],
    progress: Progress,
) -> Results:
    files = [case for case in cases.files if case.prediction is not None or not only_predicted]
    evaluate_cases(files, settings, out, workers_or_default(workers), cases.without_truth, origin, progress)
    return read_results(out)


def _settings(
    dataset_json: Mapping[str, Any] | None,
    searched: str,
    regions: Mapping[str, Sequence[int]] | str | Path | None,
    preset: str,
    surface: str | None,
    penalty: str | None,
    tolerance: float | None,
    region_tolerances: Mapping[str, float] | None,
) -> Settings:
    """Return the settings that a user chose; `searched` names the places where dataset.json was looked for."""
    found = _regions(dataset_json, searched, regions)
    protocol = protocol_for(list(found), preset, surface, penalty, tolerance, region_tolerances or {})
    return Settings(found, protocol, None if dataset_json is None else ignored_label(dataset_json))


def _regions(
    dataset_json: Mapping[str, Any] | None, searched: str, given: Mapping[str, Sequence[int]] | str | Path | None
) -> Regions:
    if given is None:
        if dataset_json is None:
            raise UsageError(f"no dataset.json in {searched}: say with --regions which labels to evaluate")
        return regions_of(dataset_json)
    if isinstance(given, Mapping):
        return regions_from(given, "regions")
    if str(given) in NAMED_REGIONS or not Path(given).suffix:
        return regions_named(str(given))
    content = read_json(Path(given))
    if isinstance(content, dict) and "labels" in content:
        return regions_of(content)
    return regions_from(content, str(given))


def cases_of_folders(truths: Path, predictions: Path) -> Cases:
    """Return the cases of two folders whose files have the same names. A true label map without a prediction is a case too.

    Raises:
        UsageError: a folder is missing or has no label maps, or no prediction belongs to a true label map.
    """
    truths, predictions = truths.resolve(), predictions.resolve()
    for folder in (truths, predictions):
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
    dataset_json = find_dataset_json(predictions, truths, truths.parent)
    ending = None if dataset_json is None else dataset_json["file_ending"]
    true_files, predicted = label_maps(truths, ending), label_maps(predictions, ending)
    if not true_files:
        raise UsageError(f"{truths}: there are no label maps" + ("" if ending is None else f" that end in {ending}"))
    if not predicted.keys() & true_files.keys():
        raise UsageError(
            f"{predictions}: no file has the name of one in {truths}, such as {next(iter(true_files.values())).name}"
        )
    files = [CaseFiles(name, truth, predicted.get(name)) for name, truth in true_files.items()]
    return Cases(files, [file for name, file in predicted.items() if name not in true_files], dataset_json)


def cases_of_model(model: Path, truths: Path | None = None, chosen: Sequence[int] | None = None) -> Cases:
    """Return the validation cases of all folds of a model that nnU-Net trained.

    Args:
        model: folder with plans.json, dataset.json and fold_0, fold_1 and so on.
        truths: folder of label maps; None looks for them in nnUNet_preprocessed and nnUNet_raw.
        chosen: the folds to take; None is all that were validated.

    Raises:
        UsageError: this is no model folder, no fold was validated, or the label maps cannot be found.
    """
    folder = ModelFolder(model.resolve())
    ending = folder.dataset_json["file_ending"]
    folds = {
        number: path / "validation" for number, path in folder.folds.items() if label_maps(path / "validation", ending)
    }
    if not folds:
        raise UsageError(
            f"{model}: no fold has predictions of its validation cases (fold_0/validation/*{ending}); nnUNetv2_train with "
            "--val makes them. fold_all does not count: its validation cases were trained on"
        )
    missing = [fold for fold in chosen or () if fold not in folds]
    if missing:
        raise UsageError(
            f"{model}: fold {missing[0]} has no predictions of its validation cases, only {', '.join(map(str, folds))}"
        )
    folds = {fold: folder for fold, folder in folds.items() if chosen is None or fold in chosen}
    truths = _truths_of(folder.dataset) if truths is None else truths.resolve()
    splits = _splits_of(folder.dataset)
    true_files = label_maps(truths, ending)
    files = []
    without_truth = []
    for fold, validation in folds.items():
        predicted = label_maps(validation, ending)
        expected = splits[fold]["val"] if splits is not None and fold < len(splits) else predicted
        without_truth += [file for name, file in predicted.items() if name not in true_files]
        lost = [name for name in expected if name not in true_files and name not in predicted]
        if lost:
            raise UsageError(f"{truths}: there is no label map of case {lost[0]}, which fold {fold} validates on")
        names = sorted({*expected, *predicted} & true_files.keys())
        files += [CaseFiles(name, true_files[name], predicted.get(name), fold) for name in names]
    if not files:
        raise UsageError(f"{truths}: there is no label map of any case that {model} was validated on")
    return Cases(sorted(files, key=lambda case: case.name), without_truth, folder.dataset_json)


def _truths_of(dataset: str) -> Path:
    found = PREPROCESSED.find(dataset, "gt_segmentations") or RAW.find(dataset, "labelsTr")
    if found is None:
        raise UsageError(
            f"the label maps of {dataset} are neither in nnUNet_preprocessed nor in nnUNet_raw: set these variables, or give "
            "the folder with --truth"
        )
    return found


def _splits_of(dataset: str) -> list[dict[str, list[str]]] | None:
    path = PREPROCESSED.find(dataset, "splits_final.json")
    return None if path is None else read_json(path)
