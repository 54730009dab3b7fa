"""BraTS: labels, regions, names of files and cases, and the releases of the adult glioma data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CHANNELS = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
"""Name on the command line and in the files of releases up to 2021 -> name in dataset.json."""

SEGMENTATION = "seg"
FILE_KINDS: Mapping[str, str] = {
    **{channel: channel for channel in CHANNELS},
    **{"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"},  # 2023
    SEGMENTATION: SEGMENTATION,
}
"""How the name of a file ends, in lower case -> key of `CHANNELS`, or `SEGMENTATION`."""

FILE_NAME = rf"(?P<case>.+)[_-](?P<kind>{'|'.join(sorted(FILE_KINDS, key=len, reverse=True))})\.nii(\.gz)?"
"""A file of a case. The case of the letters does not matter."""

STRAY_SEGMENTATION = r".*_segm\.nii(\.gz)?"
"""W39_1998.09.19_Segm.nii in BraTS 2020: the segmentation of the case whose other files lie in the same folder."""

SUBMISSION_NAME = "{case}.nii.gz"
"""File name of a segmentation in a submission."""

LICENCE = "terms of the challenge, to which one agrees for the download"

NECROSIS, EDEMA, ENHANCING = 1, 2, 3
"""The labels of BraTS 2023 and of `nnunet-glims convert`."""

LABEL_NAMES = MappingProxyType({NECROSIS: "NCR", EDEMA: "ED", ENHANCING: "ET"})

REGIONS: Mapping[str, tuple[int, ...]] = {
    "whole_tumor": (NECROSIS, EDEMA, ENHANCING),
    "tumor_core": (NECROSIS, ENHANCING),
    "enhancing_tumor": (ENHANCING,),
}
ORIGINAL_REGIONS: Mapping[str, tuple[int, ...]] = {
    "whole_tumor": (1, 2, 4),
    "tumor_core": (1, 4),
    "enhancing_tumor": (4,),
}
"""Regions in the labels of the releases up to 2021, where 4 is the enhancing tumour."""

SHORT_NAMES = {"whole_tumor": "WT", "tumor_core": "TC", "enhancing_tumor": "ET"}

LABELS: Mapping[str, int | list[int]] = MappingProxyType(
    {
        "background": 0,
        **{region: list(labels) if len(labels) > 1 else labels[0] for region, labels in REGIONS.items()},
    }
)
"""The labels of dataset.json. nnU-Net changes the dictionaries that it is given, so it must get a copy."""

REGIONS_CLASS_ORDER = (EDEMA, NECROSIS, ENHANCING)
"""The label with which nnU-Net paints each region, in the order whole tumor, tumor core, enhancing tumor."""

_OLD_LABELS = {0: 0, 1: NECROSIS, 2: EDEMA, 4: ENHANCING}
_NEW_LABELS = {0: 0, 1: NECROSIS, 2: EDEMA, 3: ENHANCING}


@dataclass(frozen=True)
class BratsRelease:
    """Facts about a release.

    Attributes:
        case_start: pattern with which the names of its cases begin, in capitals or not; it differs between releases.
        labels: label in the release -> label that `nnunet-glims convert` writes.
        training_cases: number of published cases with a segmentation.
        reference: where to get the release, and what to cite.
        patient: pattern of a case's name whose group "patient" is the same for all time points of a patient; None if each
            case is another patient.
    """

    case_start: str
    labels: Mapping[int, int]
    training_cases: int
    reference: str
    patient: str | None = None

    @property
    def label_in_release(self) -> dict[int, int]:
        """Label that `nnunet-glims convert` writes -> label in the release."""
        return {ours: theirs for theirs, ours in self.labels.items()}


RELEASES: Mapping[str, BratsRelease] = {
    "2017": BratsRelease(
        r"Brats17_",
        _OLD_LABELS,
        285,
        "https://www.med.upenn.edu/sbia/brats2017.html; doi:10.1109/TMI.2014.2377694",
    ),
    "2018": BratsRelease(
        r"Brats18_",
        _OLD_LABELS,
        285,
        "https://www.med.upenn.edu/sbia/brats2018.html; doi:10.1109/TMI.2014.2377694",
    ),
    "2019": BratsRelease(
        r"BraTS19_",
        _OLD_LABELS,
        335,
        "https://www.med.upenn.edu/cbica/brats2019; doi:10.1109/TMI.2014.2377694",
    ),
    "2020": BratsRelease(
        r"BraTS20_", _OLD_LABELS, 369, "https://www.med.upenn.edu/cbica/brats2020; doi:10.1109/TMI.2014.2377694"
    ),
    "2021": BratsRelease(r"BraTS2021_", _OLD_LABELS, 1251, "https://www.synapse.org/brats2021; arXiv 2107.02314"),
    "2023": BratsRelease(
        r"BraTS-GLI-",
        _NEW_LABELS,
        1251,
        "https://www.synapse.org/brats2023; arXiv 2107.02314",
        patient=r"(?P<patient>.+)-[^-]*",  # BraTS-GLI-00005-001: the last digits are the time point
    ),
}
"""Name on the command line -> release."""
