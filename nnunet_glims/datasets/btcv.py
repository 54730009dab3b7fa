"""Pair the images and label maps of BTCV, by the facts in `nnunet_glims.releases.btcv`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nnunet_glims.datasets.cases import Problem, Release, SourceCase
from nnunet_glims.errors import UsageError
from nnunet_glims.releases.btcv import (
    BTCV13_TEST,
    CASE_NAME,
    FILE_NAME,
    LICENCE,
    ORGANS,
    REFERENCE,
    SYNAPSE8,
    SYNAPSE8_TEST,
    SYNAPSE8_TRAIN,
)
from nnunet_glims.validation import nearest

PROTOCOLS = ("btcv13", "synapse8")
SPLITS = ("nnunet", "24-6")
_FILE = re.compile(FILE_NAME)


def read(files: Sequence[Path], protocol: str = "btcv13", split: str = "nnunet") -> Release:
    """Pair images and label maps by the number in their names.

    Args:
        files: all files of the release, in any folders.
        protocol: "btcv13" for all organs, "synapse8" for eight organs and the published 18 training and 12 test cases.
        split: "nnunet" leaves the split to nnU-Net, "24-6" validates on cases 35 to 40; "synapse8" has a split of its own.

    Raises:
        UsageError: the protocol or the split is unknown, or there is no image among the files.
    """
    for value, known, what in ((protocol, PROTOCOLS, "protocol"), (split, SPLITS, "split")):
        if value not in known:
            raise UsageError(f"{what} {value!r} is unknown: {nearest(value, list(known))}")
    if protocol == "synapse8" and split != "nnunet":
        raise UsageError(f"--split {split}: the protocol synapse8 has a published split of its own: leave --split out")
    found: dict[str, dict[int, Path]] = {"img": {}, "label": {}}
    problems = []
    for file in sorted(files):
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        kind, number = match["kind"], int(match["number"])
        if number in found[kind]:
            problems.append(
                Problem(_name(number), str(file), f"there is also {found[kind][number]}: a case may be there once")
            )
        else:
            found[kind][number] = file
    if not found["img"]:
        raise UsageError(
            f"none of {len(files)} files is named like BTCV (img0001.nii.gz, label0001.nii.gz): "
            "give the folder or archive that has RawData or averaged-training-images"
        )
    for number in sorted(found["label"].keys() - found["img"].keys()):
        problems.append(Problem(_name(number), str(found["label"][number]), "a segmentation without its image"))
    cases = tuple(
        SourceCase(_name(number), (file,), found["label"].get(number), _name(number))
        for number, file in sorted(found["img"].items())
    )
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
        cases=cases,
        channels=("CT",),
        labels=labels,
        regions_class_order=None,
        label_map=label_map,
        reference=REFERENCE,
        licence=LICENCE,
        problems=tuple(problems),
        splits=_splits(protocol, split, [case.name for case in cases if case.label is not None]),
    )


def _name(number: int) -> str:
    return CASE_NAME.format(number=number)


def _splits(protocol: str, split: str, labelled: Sequence[str]) -> list[dict[str, list[str]]] | None:
    if protocol == "synapse8":
        train, test = [_name(number) for number in SYNAPSE8_TRAIN], [_name(number) for number in SYNAPSE8_TEST]
    elif split == "24-6":
        test = [_name(number) for number in BTCV13_TEST]
        train = [name for name in labelled if name not in test]
    else:
        return None
    return [{"train": train, "val": test}]
