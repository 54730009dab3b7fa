"""Regions: the label sets that are evaluated, from dataset.json, by name, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json
from nnunet_glims.releases import brats
from nnunet_glims.validation import nearest

Regions = Mapping[str, tuple[int, ...]]

NAMED: Mapping[str, Regions] = {"brats": brats.REGIONS, "brats-original": brats.ORIGINAL_REGIONS}
"""brats: labels as BraTS 2023 and `nnunet-glims convert` have them; brats-original: as releases up to 2021."""


def short(region: str) -> str:
    """As in the field, where it has an abbreviation."""
    return brats.SHORT_NAMES.get(region, region)


def of_dataset(dataset_json: Mapping[str, Any]) -> Regions:
    """Name -> labels of each region, or each label as a region of its own, in the order of dataset.json."""
    return {
        name: tuple(labels) if isinstance(labels, list) else (labels,)
        for name, labels in dataset_json["labels"].items()
        if name not in ("background", "ignore")
    }


def ignored_label(dataset_json: Mapping[str, Any]) -> int | None:
    """The label of voxels that do not count."""
    return dataset_json["labels"].get("ignore")


def named_or_from_file(regions: str) -> Regions:
    """Regions by name, or from a JSON file {"name": [labels], ...}; raises `UsageError` saying what is wrong."""
    if regions in NAMED:
        return NAMED[regions]
    path = Path(regions)
    if not path.suffix:
        raise UsageError(f"regions {regions!r} are unknown: {nearest(regions, list(NAMED))}, or give a JSON file")
    content = read_json(path)
    if isinstance(content, dict) and "labels" in content:
        return of_dataset(content)
    if not isinstance(content, dict) or not content:
        raise UsageError(f'{path}: regions must be {{"name": [labels], ...}}, or a dataset.json')
    found = {}
    for name, labels in content.items():
        chosen = labels if isinstance(labels, list) else [labels]
        if not chosen or not all(type(label) is int and 0 < label <= 255 for label in chosen):
            raise UsageError(f"{path}: {name}: a region is a list of labels from 1 to 255, this is {labels!r}")
        found[name] = tuple(chosen)
    return found
