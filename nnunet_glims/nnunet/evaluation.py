"""Evaluation of nnU-Net's results: folders of predictions, and the cross-validation of a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.protocol import protocol_for
from nnunet_glims.evaluation.records import Results, changed_file, read_results, status_of
from nnunet_glims.evaluation.regions import NAMED_REGIONS, Regions, regions_from, regions_named
from nnunet_glims.evaluation.results import Settings, evaluate_cases
from nnunet_glims.files import read_json
from nnunet_glims.nnunet.cases import Cases, cases_of_folders, cases_of_model
from nnunet_glims.nnunet.folders import ignored_label, is_background, label_maps, regions_of
from nnunet_glims.processes import Progress, quietly, workers_or_default

RESULTS_FOLDER = "evaluation"
"""Name of the folder for the results, in the folder that is evaluated."""


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
    return _evaluate(cases, settings, only_predicted, out, workers, None, progress)


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
    return _evaluate(cases, settings, only_predicted, out, workers, model.resolve(), progress)


def _evaluate(
    cases: Cases,
    settings: Settings,
    only_predicted: bool,
    out: Path,
    workers: int | None,
    model: Path | None,
    progress: Progress,
) -> Results:
    files = [case for case in cases.files if case.prediction is not None or not only_predicted]
    origin = {
        "model": None if model is None else str(model),
        "folders": [str(folder) for folder in cases.folders],
        "results": str(out.resolve()),
        "folds": None if cases.folds is None else cases.folds.as_json(),
        "left_out": [case.name for case in cases.files if case.prediction is None and only_predicted],
        "other_files": [str(file) for file in cases.other_files],
        "remarks": list(cases.remarks),
    }
    evaluate_cases(files, settings, out, workers_or_default(workers), cases.without_truth, origin, progress)
    return read_results(out)


def change_since(results: Results) -> str | None:
    """Return a sentence about a label map that is another one now than when it was evaluated; None where all are the same.

    Raises:
        UsageError: a folder of predictions has two files of one case.
    """
    if (sentence := changed_file(results)) is not None:
        return sentence
    evaluated = {(line["case"], line["prediction"]) for line in results.cases}
    elsewhere = {(name, None if file is None else str(Path(file).parent)) for name, file in evaluated}
    for folder in results.summary["folders"]:
        for name, file in label_maps(Path(folder)).items() if status_of(folder) else ():
            replaced = (name, None) in elsewhere or (name, folder) in elsewhere
            if replaced and (name, str(file)) not in evaluated:
                return f"{file} of case {name} was not there when this was evaluated"
    return None


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
        return regions_from(regions_of(dataset_json), f"dataset.json of {searched}")
    if isinstance(given, Mapping):
        return regions_from(given, "regions")
    if str(given) in NAMED_REGIONS or not Path(given).suffix:
        return regions_named(str(given))
    content = read_json(Path(given))
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):  # a dataset.json
        labels = content["labels"].items()
        content = {name: of for name, of in labels if name != "ignore" and not is_background(name, of)}
    return regions_from(content, str(given))
