"""The cases of a release, and their description in nnU-Net's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """A problem of a release.

    Attributes:
        case: name of the case; "" if the problem does not belong to a single case.
        file: path of the file; "" if the problem does not belong to a single file.
        message: what is wrong.
    """

    case: str
    file: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.case, self.file, self.message) if part)


@dataclass(frozen=True)
class SourceCase:
    """A case of a release.

    Attributes:
        name: the case's name in the release.
        images: one file per channel, in the order of the data set's channels.
        label: the file of its segmentation; None for a test case.
        patient: the patient's name. Cases of one patient stay in one fold.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The images, then the segmentation if there is one."""
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True)
class Release:
    """The cases of a release, whose voxels have not been checked.

    Attributes:
        name: name of the release, for example "BraTS 2021".
        cases: the cases, sorted by name.
        channels: names of the channels, in the order of `SourceCase.images`.
        labels: the entry "labels" of dataset.json: name -> label, or labels of a region.
        regions_class_order: the entry of this name in dataset.json; None without regions.
        label_map: label in the release -> label in nnU-Net. Other labels are reported as problems.
        reference, licence: the entries of these names in dataset.json.
        problems: problems with names, such as a case that exists twice.
        splits: content of nnU-Net's splits_final.json; None leaves the split to nnU-Net.
    """

    name: str
    cases: tuple[SourceCase, ...]
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    regions_class_order: tuple[int, ...] | None
    label_map: Mapping[int, int]
    reference: str
    licence: str
    problems: tuple[Problem, ...] = ()
    splits: list[dict[str, list[str]]] | None = None

    @property
    def file_ending(self) -> str:
        """The ending of the converted files: ".nii" if all files of the release have it, else ".nii.gz"."""
        return ".nii" if all(file.suffix == ".nii" for case in self.cases for file in case.files) else ".nii.gz"
