"""Regions: named sets of labels that are evaluated together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_glims.errors import UsageError, cut
from nnunet_glims.releases import brats
from nnunet_glims.validation import nearest

Regions = Mapping[str, tuple[int, ...]]

NAMED_REGIONS: Mapping[str, Regions] = {"brats": brats.REGIONS, "brats-original": brats.ORIGINAL_REGIONS}
"""brats: in the labels of BraTS 2023 and later. brats-original: in the labels of the releases up to 2021."""


def short(region: str) -> str:
    """Return the usual abbreviation of a region, such as WT; its full name if there is none."""
    return brats.SHORT_NAMES.get(region, region)


def printable(name: str) -> str:
    """Return a name; raise `UsageError` if it has letters that cannot be printed, such as those that command a terminal."""
    if not name.isprintable():
        raise UsageError(f"the name {name!a} has letters that cannot be printed")
    return name


def regions_named(name: str) -> Regions:
    """Return the regions of that name; raise `UsageError` with the nearest known name if there is none."""
    if name not in NAMED_REGIONS:
        raise UsageError(f"regions {name!r} are unknown: {nearest(name, list(NAMED_REGIONS))}, or give a JSON file")
    return NAMED_REGIONS[name]


def regions_from(content: Any, where: str) -> Regions:
    """Return regions from {"name": [labels], ...}; a single label may be given without brackets.

    Args:
        content: what a user or a JSON file gives as regions.
        where: how error messages name the source, such as the file's path.

    Raises:
        UsageError: the content has another form, or a label is not from 1 to 255.
    """
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f'{where}: there must be regions besides the background, as {{"name": [labels], ...}}')
    found = {}
    for name, labels in content.items():
        if not name:
            raise UsageError(f"{where}: a region has an empty name")
        printable(name)
        chosen = list(labels) if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
        if not chosen or not all(type(label) is int and 0 < label <= 255 for label in chosen):
            raise UsageError(
                f"{where}: {name}: a region is a list of labels from 1 to 255, this is {cut(repr(labels))}"
            )
        found[name] = tuple(chosen)
    return found
