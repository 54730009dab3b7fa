"""What a data set's module finds in a release, and how it is to look in nnU-Net's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """Something wrong with a release: with one case, or with no case in particular (`case` is "")."""

    case: str
    file: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.case, self.file, self.message) if part)


@dataclass(frozen=True)
class SourceCase:
    """A case of a release.

    Attributes:
        name: of the case, as it is in the release.
        images: a file for each channel, in the order of the data set's channels.
        label: its segmentation; None for a test case.
        patient: cases of one patient stay in one fold.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str

    @property
    def files(self) -> tuple[Path, ...]:
        """Images, then the segmentation if there is one."""
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True)
class Release:
    """A release, read but not checked voxel by voxel.

    Attributes:
        name: of the release, for example "BraTS 2021".
        cases: sorted by name.
        channels: names, in the order of `SourceCase.images`.
        labels: of dataset.json: name -> label, or labels of a region.
        regions_class_order: of dataset.json; None without regions.
        label_map: label in the release -> label in nnU-Net. Others are errors.
        reference, licence: of dataset.json.
        problems: found while looking at names.
        splits: nnU-Net's splits_final.json; None leaves the split to nnU-Net.
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
        """ ".nii" where all files have it, else ".nii.gz"."""
        return ".nii" if all(file.suffix == ".nii" for case in self.cases for file in case.files) else ".nii.gz"
