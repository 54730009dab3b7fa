"""A data set: which one is meant, then its dataset.json, plans, preprocessed data, splits, network and models."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from nnunet_glims.doctor import dataset_json, models, network, plans_file, preprocessed, splits
from nnunet_glims.doctor.findings import Finding, Findings, isolated, some
from nnunet_glims.doctor.folders import FOLDERS

TOPIC = "data set"


def check(dataset: str, trainer: str, plans_name: str, configuration: str) -> Findings[None]:
    """Yield findings about a data set that is given by number or name; each part is looked at whatever another is like."""
    folder = yield from _find(dataset, configuration)
    if folder is None:
        return
    described = yield from isolated("dataset.json", dataset_json.check, folder)
    plans = yield from isolated("plans", plans_file.check, folder, plans_name, configuration)
    if plans is not None:
        data = yield from isolated("preprocessed data", preprocessed.check, folder, plans, configuration, described)
        yield from isolated("splits", splits.check, folder, data)
        yield from isolated(
            "network", network.check, folder, plans, described, trainer, configuration, way_out="see docs/plans.md"
        )
    else:
        yield from isolated("splits", splits.check, folder, None)
    yield from isolated("models", models.check, folder.name, trainer, plans_name, configuration)


def _find(dataset: str, configuration: str) -> Findings[Path | None]:
    """Return the data set's folder in nnUNet_preprocessed; None, after a finding, where there is none or more than one."""
    found = _data_sets()
    name = yield from _name(dataset, found)
    if name is None:
        return None
    number = int(name.removeprefix("Dataset")[:3])
    root = os.environ.get("nnUNet_preprocessed")
    if not root:
        yield Finding(TOPIC, "fail", f"{name}: not looked at", "set nnUNet_preprocessed first")
        return None
    folder = Path(root, name)
    if not folder.is_dir():
        command = f"nnUNetv2_plan_and_preprocess -d {number} -c {configuration}"
        if "nnUNet_raw" in found[name]:
            yield Finding(TOPIC, "fail", f"{folder}: there is no such folder: {name} was not preprocessed yet", command)
        else:
            state = f"{folder}: there is no such folder, and nnUNet_raw has no {name} to make it from"
            yield Finding(
                TOPIC, "fail", state, "look whether nnUNet_raw and nnUNet_preprocessed name the right folders"
            )
        return None
    return folder


def _data_sets() -> dict[str, list[str]]:
    """Return name -> variables of nnU-Net's folders that have a data set of that name."""
    found: dict[str, list[str]] = {}
    for variable in FOLDERS:
        root, entries = os.environ.get(variable), []
        with contextlib.suppress(OSError):  # a folder that is missing or cannot be read has a finding of its own
            entries = sorted(os.listdir(root)) if root else []
        for entry in entries:
            if re.match(r"Dataset\d{3}_.", entry) and os.path.isdir(os.path.join(str(root), entry)):
                found.setdefault(entry, []).append(variable)
    return found


def _name(dataset: str, found: Mapping[str, list[str]]) -> Findings[str | None]:
    """Return the name of the one data set that is meant; None, after a finding, where nnU-Net would not find it."""
    from nnunet_glims.validation import nearest

    if dataset.isdecimal():
        names = [name for name in found if int(name[7:10]) == int(dataset)]
    else:
        names = [dataset] if dataset in found else []
    if not names:
        meant = [
            name for name in found if Path(dataset).name in (name, name[11:]) or dataset in (name[7:10], name[11:])
        ]
        known = [f"{int(name[7:10])} ({name})" for name in found]
        if meant:
            way_out = f"-d {int(meant[0][7:10])}, or -d {meant[0]}"
        elif dataset.isdecimal() or not found:
            way_out = f"there are {some(known)}" if found else "convert one first, or set the three variables"
        else:
            way_out = f"give its number or name: {nearest(dataset, list(found))}"
        yield Finding(TOPIC, "fail", f"nnU-Net's folders have no data set {dataset!r}", way_out)
        return None
    others = [name for name in found if name[:10] == names[0][:10]]
    if len(others) > 1:
        where = "; ".join(f"{name} in {' and '.join(found[name])}" for name in others)
        state = f"{len(others)} data sets share the number {int(names[0][7:10])}, and nnU-Net refuses it: {where}"
        yield Finding(TOPIC, "fail", state, "rename the folders of one of them, or move them away")
        return None if dataset.isdecimal() else names[0]
    return names[0]
