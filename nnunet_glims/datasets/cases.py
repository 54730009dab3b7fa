"""The cases of a release: their files, names and problems."""

from __future__ import annotations

import filecmp
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

_LONGEST_NAME = 200
"""Bytes of a case's name. The file system allows 255 for a file's name, of which endings and working folders need some."""


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
        return ": ".join(readable(part) for part in (self.case, self.file, self.message) if part)


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
        training_cases: number of published cases with a segmentation.
        problems: problems with names, such as a case that exists twice.
        splits: the published splits, in the form of nnU-Net's splits_final.json; None leaves the split to nnU-Net.
        unused: files whose names are not those of a case.
    """

    name: str
    cases: tuple[SourceCase, ...]
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    regions_class_order: tuple[int, ...] | None
    label_map: Mapping[int, int]
    reference: str
    licence: str
    training_cases: int
    problems: tuple[Problem, ...] = ()
    splits: list[dict[str, list[str]]] | None = None
    unused: tuple[Path, ...] = ()

    @property
    def file_ending(self) -> str:
        """The ending of the converted files: ".nii" if all files of the release have it, else ".nii.gz"."""
        endings = {file.suffix.lower() for case in self.cases for file in case.files}
        return ".nii" if endings == {".nii"} else ".nii.gz"


class FilesOfCases:
    """The files of a release by case and kind. A kind is a channel, or the segmentation.

    Attributes:
        by_case: case -> kind -> file.
        problems: files of a case and kind that has another file already, with other content.
    """

    def __init__(self) -> None:
        self.by_case: dict[str, dict[str, Path]] = defaultdict(dict)
        self.problems: list[Problem] = []

    def add(self, case: str, kind: str, file: Path) -> None:
        """Add a file; one that has the same bytes as the file of this case and kind is left out."""
        other = self.by_case[case].setdefault(kind, file)
        if other != file and not _same_bytes(other, file):
            message = f"there is also {other}, which has other content: a case may be there once"
            self.problems.append(Problem(case, str(file), message))


def plain_name(file: Path) -> str:
    r"""Return the name of a file in Unicode's composed form (NFC), in which names with accents can be compared.

    Programs that unpack an archive of a Windows program may write folders into the name, with \; they are removed.
    """
    return unicodedata.normalize("NFC", PureWindowsPath(file.name).name)


def readable(text: str) -> str:
    """Return a text in which bytes of a file's name that are not UTF-8 are written as \\xNN."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def problems_of_names(names: Sequence[str]) -> list[Problem]:
    """Return a problem for each case whose files could not have its name on every system, or could not be told apart."""
    same = Counter(name.casefold() for name in names)
    problems = []
    for name in names:
        if not name.isprintable():
            problems.append(Problem(name, "", "the name has characters that cannot be shown: rename the files"))
        if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
            problems.append(Problem(name, "", f"the name has more than {_LONGEST_NAME} bytes: rename the files"))
        if same[name.casefold()] > 1:
            problems.append(Problem(name, "", "another case's name differs in capital letters only: rename the files"))
    return problems


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:  # a link to a file that is not there
        return False
