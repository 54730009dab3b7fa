"""Which files belong to which case: folders of labels and predictions, and nnU-Net's model folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.results import CaseFiles
from nnunet_glims.files import read_json
from nnunet_glims.nnunet.models import ModelFolder, checked

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Cases:
    """What there is to evaluate.

    Attributes:
        files: sorted by name.
        without_truth: predictions that no label map belongs to.
        dataset_json: of nnU-Net; None where none was found.
    """

    files: Sequence[CaseFiles]
    without_truth: Sequence[Path]
    dataset_json: Mapping[str, Any] | None


def of_folders(truths: Path, predictions: Path) -> Cases:
    """Label maps and predictions of the same file names. A label map without prediction is a case all the same.

    Raises:
        UsageError: a folder is missing or has no images.
    """
    truths, predictions = truths.resolve(), predictions.resolve()
    for folder in (truths, predictions):
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
    dataset_json = find_dataset_json(predictions, truths, truths.parent)
    ending = _ending(truths, dataset_json)
    true_files = _images(truths, ending)
    if not true_files:
        raise UsageError(f"{truths}: there is no file that ends in {ending}")
    predicted = _images(predictions, ending)
    if not predicted.keys() & true_files.keys():
        raise UsageError(
            f"{predictions}: no file has the name of one in {truths}, such as {next(iter(true_files.values())).name}"
        )
    files = [CaseFiles(name, truth, predicted.get(name)) for name, truth in true_files.items()]
    return Cases(files, [file for name, file in predicted.items() if name not in true_files], dataset_json)


def of_model(model: Path, truths: Path | None = None, chosen: Sequence[int] | None = None) -> Cases:
    """The validation cases of all folds of a model that nnU-Net trained.

    Args:
        model: folder with plans.json, dataset.json and fold_0, ….
        truths: folder of label maps; None looks for them in nnUNet_preprocessed and nnUNet_raw.
        chosen: the folds to take; None is all that were validated.

    Raises:
        UsageError: this is no model folder, no fold was validated, or the label maps cannot be found.
    """
    folder = ModelFolder(model.resolve())
    ending = folder.dataset_json["file_ending"]
    folds = {
        number: path / "validation" for number, path in folder.folds.items() if _images(path / "validation", ending)
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
    true_files = _images(truths, ending)
    files = []
    without_truth = []
    for fold, validation in folds.items():
        predicted = _images(validation, ending)
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


def _images(folder: Path, ending: str) -> dict[str, Path]:
    """Case -> file."""
    if not folder.is_dir():
        return {}
    # Names that begin with a dot are those of macOS and of unfinished files.
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    others = [file for file in files if file.name.endswith(ENDINGS) and not file.name.endswith(ending)]
    if others:
        raise UsageError(f"{others[0]}: this does not end in {ending} as the others do: all cases need the same ending")
    return {file.name.removesuffix(ending): file for file in files if file.name.endswith(ending)}


def find_dataset_json(*folders: Path) -> Mapping[str, Any] | None:
    """The first dataset.json in the folders; None where there is none."""
    for folder in folders:
        if (folder / "dataset.json").exists():
            return checked(folder / "dataset.json")
    return None


def _ending(folder: Path, dataset_json: Mapping[str, Any] | None) -> str:
    if dataset_json is not None:
        return dataset_json["file_ending"]
    for ending in ENDINGS:
        if _images(folder, ending):
            return ending
    raise UsageError(f"{folder}: there are no label maps ({', '.join(ENDINGS)})")


def _folder_of(variable: str, *parts: str) -> Path | None:
    root = os.environ.get(variable)
    path = Path(root, *parts) if root else None
    return path if path is not None and path.exists() else None


def _truths_of(dataset: str) -> Path:
    found = _folder_of("nnUNet_preprocessed", dataset, "gt_segmentations") or _folder_of(
        "nnUNet_raw", dataset, "labelsTr"
    )
    if found is None:
        raise UsageError(
            f"the label maps of {dataset} are neither in nnUNet_preprocessed nor in nnUNet_raw: set these variables, or give "
            "the folder with --truth"
        )
    return found


def _splits_of(dataset: str) -> list[dict[str, list[str]]] | None:
    path = _folder_of("nnUNet_preprocessed", dataset, "splits_final.json")
    return None if path is None else read_json(path)


def preprocessed_folder(dataset: str) -> Path:
    """The data set's folder in nnUNet_preprocessed, by number or name; raises `UsageError` where there is none."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    root = os.environ.get("nnUNet_preprocessed")
    if not root:
        raise UsageError("the environment variable nnUNet_preprocessed is not set: nnU-Net keeps its plans there")
    try:
        name = maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"data set {dataset!r}: {error}") from None
    folder = Path(root) / name
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder. Run nnUNetv2_plan_and_preprocess -d {dataset} first")
    return folder
