"""Pair the images and label maps of BTCV, by the facts in `nnunet_glims.releases.btcv`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nnunet_glims.datasets.cases import FilesOfCases, Problem, Release, SourceCase, plain_name
from nnunet_glims.errors import UsageError
from nnunet_glims.releases.btcv import (
    BTCV13_TEST,
    BTCV13_TRAIN,
    CASE_NAME,
    FILE_NAME,
    LICENCE,
    ORGANS,
    REFERENCE,
    SYNAPSE8,
    SYNAPSE8_TEST,
    SYNAPSE8_TRAIN,
    TRAINING,
)
from nnunet_glims.validation import nearest

PROTOCOLS = ("btcv13", "synapse8")
SPLITS: tuple[str, ...] = ("nnunet", "24-6")
"""Names of splits; other values of the option are files."""
_FILE = re.compile(FILE_NAME, re.IGNORECASE)


def read(
    files: Sequence[Path], protocol: str = "btcv13", split: str | None = None, where: str = "the release"
) -> Release:
    """Pair images and label maps by the number in their names.

    Args:
        files: all files of the release, in any folders.
        protocol: "btcv13" for all organs, "synapse8" for eight organs and the published 18 training and 12 test cases.
        split: "24-6" validates on cases 35 to 40; any other leaves the split to nnU-Net or the caller. The protocol
            "synapse8" has a split of its own and takes no other.
        where: how messages name the source of the files.

    Raises:
        UsageError: the protocol is unknown or takes no split, or there is no image among the files.
    """
    check_options(protocol, split)
    found = FilesOfCases()
    unused = []
    for file in sorted(files):
        match = _FILE.fullmatch(plain_name(file))
        if match is None:
            unused.append(file)
        else:
            found.add(_name(int(match["number"])), match["kind"].lower(), file)
    if not any("img" in kinds for kinds in found.by_case.values()):
        raise UsageError(
            f"{where}: none of {len(files)} files is named like BTCV (img0001.nii.gz, label0001.nii.gz): "
            "give the folder or archive that has RawData or averaged-training-images"
        )
    problems = list(found.problems)
    cases = []
    for name, kinds in sorted(found.by_case.items()):
        if "img" in kinds:
            cases.append(SourceCase(name, (kinds["img"],), kinds.get("label"), name))
        else:
            problems.append(Problem(name, str(kinds["label"]), "a segmentation without its image"))
    labels: dict[str, int | list[int]] = {"background": 0}
    if protocol == "synapse8":
        labels.update((organ, index + 1) for index, organ in enumerate(SYNAPSE8))
    else:
        labels.update((organ, index + 1) for index, organ in enumerate(ORGANS))
    label_map = {0: 0}
    for index, organ in enumerate(ORGANS):
        kept = labels.get(organ, 0)
        assert isinstance(kept, int)
        label_map[index + 1] = kept
    return Release(
        name=f"BTCV, protocol {protocol}",
        cases=tuple(cases),
        channels=("CT",),
        labels=labels,
        regions_class_order=None,
        label_map=label_map,
        reference=REFERENCE,
        licence=LICENCE,
        training_cases=len(TRAINING),
        problems=tuple(problems),
        splits=_splits(protocol, split),
        unused=tuple(unused),
    )


def check_options(protocol: str, split: str | None, partial_split: bool = False) -> None:
    """Raise `UsageError` if the protocol is unknown or takes no such split, or no published split is to be partial."""
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r} is unknown: {nearest(protocol, list(PROTOCOLS))}")
    if protocol == "synapse8" and split is not None:
        raise UsageError(f"--split {split}: the protocol synapse8 has a published split of its own: leave --split out")
    if partial_split and protocol != "synapse8" and split != "24-6":
        raise UsageError("--partial: this is for a published split: --split 24-6, or the protocol synapse8")


def _name(number: int) -> str:
    return CASE_NAME.format(number=number)


def _splits(protocol: str, split: str | None) -> list[dict[str, list[str]]] | None:
    """Return the published split, with all its cases, whether they are there or not."""
    if protocol == "synapse8":
        train, test = SYNAPSE8_TRAIN, SYNAPSE8_TEST
    elif split == "24-6":
        train, test = BTCV13_TRAIN, BTCV13_TEST
    else:
        return None
    return [{"train": [_name(number) for number in train], "val": [_name(number) for number in test]}]
