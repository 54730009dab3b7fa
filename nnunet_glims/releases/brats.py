"""BraTS: labels, regions and releases of the adult glioma data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CHANNELS = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
"""Name on the command line -> name in dataset.json."""

NECROSIS, EDEMA, ENHANCING = 1, 2, 3
"""Labels as BraTS 2023 and `nnunet-glims convert` have them."""

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
"""In the labels of the releases up to 2021, where 4 is the enhancing tumour."""

SHORT_NAMES = {"whole_tumor": "WT", "tumor_core": "TC", "enhancing_tumor": "ET"}

LABELS: dict[str, int | list[int]] = {
    "background": 0,
    **{region: list(labels) if len(labels) > 1 else labels[0] for region, labels in REGIONS.items()},
}
"""The labels of dataset.json."""

REGIONS_CLASS_ORDER = (EDEMA, NECROSIS, ENHANCING)
"""nnU-Net paints whole tumor, core, enhancing tumor one over the other: what is left of each has this label."""

_OLD_LABELS = {0: 0, 1: NECROSIS, 2: EDEMA, 4: ENHANCING}
_NEW_LABELS = {0: 0, 1: NECROSIS, 2: EDEMA, 3: ENHANCING}

RELEASES = {
    # name: how its cases begin, labels, reference
    "2018": (
        r"Brats1[789]_",
        _OLD_LABELS,
        "https://www.med.upenn.edu/sbia/brats2018.html; doi:10.1109/TMI.2014.2377694",
    ),
    "2020": (r"BraTS20_", _OLD_LABELS, "https://www.med.upenn.edu/cbica/brats2020; doi:10.1109/TMI.2014.2377694"),
    "2021": (r"BraTS2021_", _OLD_LABELS, "https://www.synapse.org/brats2021; arXiv 2107.02314"),
    "2023": (r"BraTS-GLI-", _NEW_LABELS, "https://www.synapse.org/brats2023; arXiv 2107.02314"),
}
