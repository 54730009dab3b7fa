"""nnU-Net's three root folders, the folders of data sets, dataset.json, and the label maps of a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.regions import Regions
from nnunet_glims.nnunet.dataset_json import read_dataset_json

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
"""How the names of label maps may end. The longer ending comes first where one ends in another."""

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

    try:
        return maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"data set {dataset!r}: {error}") from None


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


def regions_of(dataset_json: Mapping[str, Any]) -> Regions:
    """Return name -> labels of each region, in the order of dataset.json; without regions each label is one of its own."""
    return {
        name: tuple(labels) if isinstance(labels, list) else (labels,)
        for name, labels in dataset_json["labels"].items()
        if name not in ("background", "ignore")
    }


def ignored_label(dataset_json: Mapping[str, Any]) -> int | None:
    """Return the ignore label, whose voxels do not count; None if the data set has none."""
    return dataset_json["labels"].get("ignore")


def label_maps(folder: Path, ending: str | None = None) -> dict[str, Path]:
    """Return case -> its label map, for all CASE<ending> in a folder, sorted by file name; empty if there is no such folder.

    Names that begin with a dot are left out: they are those of macOS and of unfinished files.

    Args:
        folder: folder to search.
        ending: the file ending of the data set; None takes every ending of `ENDINGS`.

    Raises:
        UsageError: a label map has another ending than the one given, or two label maps belong to one case.
    """
    if not folder.is_dir():
        return {}
    endings = ENDINGS if ending is None else (ending,)
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith("."):
            continue
        its_ending = next((known for known in endings if file.name.endswith(known)), None)
        if its_ending is None:
            if file.name.endswith(ENDINGS):
                raise UsageError(f"{file}: this does not end in {ending}, as the file_ending of dataset.json has it")
            continue
        name = file.name.removesuffix(its_ending)
        if name in found:
            raise UsageError(
                f"{folder}: case {name} has two label maps, {found[name].name} and {file.name}: remove one of them"
            )
        found[name] = file
    return found
