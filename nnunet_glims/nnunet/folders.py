"""nnU-Net's three root folders, the folders of data sets, dataset.json, and the label maps of a folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError, cut
from nnunet_glims.evaluation.regions import Regions
from nnunet_glims.nnunet.dataset_json import read_dataset_json

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".tiff", ".tif")
"""How the names of 3D label maps may end, in small or capital letters: those that nnU-Net's readers know, and ".mhd"."""

_COMPANIONS = ("dataset.json", "plans.json", "predict_from_raw_data_args.json", "summary.json", "postprocessing.json",
               "postprocessing.pkl")  # fmt: skip
"""Files that nnU-Net and this package write beside label maps."""
_OF_CASES = (".npz", ".pkl", ".json", ".raw", ".zraw")
"""Endings of files that belong to a case's label map: probabilities, properties, spacing of TIFF, voxels of ".mhd"."""

READERS = ("SimpleITKIO", "NibabelIO")
"""nnU-Net's image readers that return the axes in the order of the file (z, y, x)."""


@dataclass(frozen=True)
class Root:
    """A root folder of nnU-Net, which an environment variable names.

    Attributes:
        variable: name of the environment variable.
        content: what nnU-Net stores there, for error messages.
    """

    variable: str
    content: str

    @property
    def path(self) -> Path:
        """Return the folder; raise `UsageError` if the variable is not set."""
        root = os.environ.get(self.variable)
        if not root:
            raise UsageError(f"the environment variable {self.variable} is not set: nnU-Net keeps {self.content} there")
        return Path(root)

    def find(self, *parts: str) -> Path | None:
        """Return the file or folder with this path below the root; None if it does not exist or the variable is not set."""
        root = os.environ.get(self.variable)
        path = Path(root, *parts) if root else None
        return path if path is not None and path.exists() else None

    def dataset(self, dataset: str) -> Path:
        """Return the folder of a data set below the root.

        Args:
            dataset: its number ("137") or its name ("Dataset137_BraTS").

        Raises:
            UsageError: the variable is not set, nnU-Net knows no such data set, or the root has no folder of it.
        """
        folder = self.path / dataset_name(dataset)
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
        return folder


RAW = Root("nnUNet_raw", "raw data sets")
PREPROCESSED = Root("nnUNet_preprocessed", "its plans and preprocessed data")
RESULTS = Root("nnUNet_results", "trained models")


def dataset_name(dataset: str) -> str:
    """Return the name DatasetNNN_NAME of a data set given by number or name; raise `UsageError` if nnU-Net knows none."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    if not re.fullmatch(r"[0-9]{1,9}|Dataset[0-9]{3}_[^/\\]+", dataset):
        raise UsageError(f"data set {cut(dataset)!r}: give the data set's number or its name DatasetNNN_NAME")
    try:
        return maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"data set {dataset!r}: {cut(str(error), 300)}") from None


def preprocessed_folder(dataset: str) -> Path:
    """Return the folder in nnUNet_preprocessed of a data set that is given by number or name.

    Raises:
        UsageError: the variable is not set, nnU-Net knows no such data set, or it was not preprocessed.
    """
    folder = PREPROCESSED.path / dataset_name(dataset)
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder. Run nnUNetv2_plan_and_preprocess -d {dataset} first")
    return folder


def find_dataset_json(*folders: Path) -> Mapping[str, Any] | None:
    """Return the content of the first dataset.json in the folders; None where there is none."""
    for folder in folders:
        if (folder / "dataset.json").exists():
            return read_dataset_json(folder / "dataset.json")
    return None


def is_background(name: str, labels: object) -> bool:
    """Return whether an entry of "labels" in dataset.json is the background: named so in any letters, or of label 0 alone."""
    return name.strip().lower() == "background" or labels == 0 or labels == [0]


def regions_of(dataset_json: Mapping[str, Any]) -> Regions:
    """Return name -> labels of each region, in the order of dataset.json; without regions each label is one of its own."""
    return {
        name: tuple(labels) if isinstance(labels, list) else (labels,)
        for name, labels in dataset_json["labels"].items()
        if name != "ignore" and not is_background(name, labels)
    }


def ignored_label(dataset_json: Mapping[str, Any]) -> int | None:
    """Return the ignore label, whose voxels do not count; None if the data set has none."""
    return dataset_json["labels"].get("ignore")


def label_maps(folder: Path, ending: str | None = None) -> dict[str, Path]:
    """Return case -> its label map, for all CASE<ending> in a folder, sorted by file name; empty if there is no such folder.

    This is the one list of a folder's cases. Names that begin with a dot are left out: they are those of macOS and of
    unfinished files. `other_files` returns what else is in the folder.

    Args:
        folder: folder to search.
        ending: the file ending of the data set; None takes every ending of `ENDINGS`.

    Raises:
        UsageError: two label maps belong to one case, a label map has another ending than the one given, the name of a
            case cannot be printed, or the folder cannot be read.
    """
    found = files_by_case(folder, ENDINGS if ending is None else (ending, *ENDINGS))
    for file in found.values():
        if ending is not None and not file.name.lower().endswith(ending.lower()):
            raise UsageError(f"{file}: this does not end in {ending}, as the file_ending of dataset.json has it")
    return found


def files_by_case(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Return case -> its file, for all files of a folder with one of these endings, in small or capital letters.

    Names of cases are in Unicode's composed form (NFC), whichever form the file system has.

    Raises:
        UsageError: as for `label_maps`.
    """
    longest_first = sorted({ending.lower() for ending in endings}, key=len, reverse=True)
    found: dict[str, Path] = {}
    for file in _listed(folder):
        ending = next((known for known in longest_first if file.name.lower().endswith(known)), None)
        if ending is None:
            continue
        name = unicodedata.normalize("NFC", file.name[: -len(ending)])
        if not name.isprintable():
            raise UsageError(
                f"{folder}: the name {file.name!r} has letters that cannot be printed or are not UTF-8: rename this file"
            )
        if name in found:
            raise UsageError(
                f"{folder}: case {name} has two files, {found[name].name} and {file.name}: remove one of them"
            )
        found[name] = file
    return found


def case_of(path: str) -> str:
    """Return the case of the path of a label map, whichever system wrote it; its whole name if the ending is unknown."""
    name = unicodedata.normalize("NFC", path.replace("\\", "/").rpartition("/")[2])
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)


def other_files(folder: Path, ending: str | None = None) -> list[Path]:
    """Return the files of a folder that are neither label maps nor written beside them by nnU-Net, sorted by name.

    Raises:
        UsageError: as for `label_maps`.
    """
    cases = label_maps(folder, ending)
    known = {*(file.name for file in cases.values()), *_COMPANIONS}
    return [
        file
        for file in _listed(folder)
        if file.name not in known
        and file.is_file()
        and not (file.suffix in _OF_CASES and unicodedata.normalize("NFC", file.stem) in cases)
    ]


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder, without names that begin with a dot; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    try:
        return sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None
