"""The dataset.json of a preprocessed data set: what nnU-Net and the networks need of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from nnunet_glims.doctor.findings import MOST_NAMES, Finding, Findings, isolated
from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json

TOPIC = "dataset.json"


def check(folder: Path) -> Findings[Mapping[str, Any] | None]:
    """Yield findings about dataset.json; return its content if nnU-Net can work with it, else None."""
    path = folder / "dataset.json"
    again = f"correct it in nnUNet_raw/{folder.name} and here, {path}"
    way_out = f"copy it from nnUNet_raw/{folder.name}"
    content = yield from isolated(TOPIC, _mapping, path, way_out=way_out)
    if content is None:
        return None
    problems = [*_labels(content), *_channels(content), *_ending(content)] or _refusal(path, content)
    for problem in problems:
        yield Finding(TOPIC, "fail", f"{path}: {problem}", again)
    if problems:
        return None
    yield from isolated(TOPIC, _check_is_that_of_the_raw_data, folder, content)
    return content


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path}: this is a {_kind(content)}, not a mapping of names to values")
    return content


def _kind(value: Any) -> str:
    return {list: "list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _labels(content: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the labels."""
    labels = content.get("labels")
    if not isinstance(labels, dict):
        return ["there are no labels"] if "labels" not in content else [f"labels is a {_kind(labels)}, not a mapping"]
    if any(isinstance(value, str) and name.isdecimal() for name, value in labels.items()):
        return ["labels are numbers with names, as in version 1: nnU-Net v2 has names first, as in {'background': 0}"]
    values = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
    wrong = [name for name, numbers in values.items() if not numbers or not all(type(n) is int for n in numbers)]
    if wrong:
        return [f"labels: {name}: {labels[name]!r} is no label and no list of labels" for name in wrong]
    problems = []
    if "background" not in labels:
        meant = next((name for name in labels if name.lower() == "background" or labels[name] == 0), None)
        named = f": {meant!r} must be named so" if meant is not None else ""
        problems.append(f"labels: there is no 'background', which nnU-Net needs as label 0{named}")
    elif labels["background"] != 0:
        problems.append(f"labels: background is {labels['background']!r}, and must be 0")
    used = {number for numbers in values.values() for number in numbers}
    if min(used, default=0) < 0:
        problems.append(f"labels: {min(used)} is below 0")
    unused = list(islice((number for number in range(max(used, default=0)) if number not in used), MOST_NAMES))
    if unused and "background" in labels:
        problems.append(f"labels are not consecutive: {', '.join(map(str, unused))} of 0 to {max(used)} not used")
    if any(len(numbers) > 1 for numbers in values.values()):
        problems += _order(content, [name for name in labels if name not in ("background", "ignore")])
    return problems


def _order(content: Mapping[str, Any], regions: list[str]) -> list[str]:
    order = content.get("regions_class_order")
    if order is None:
        return ["some labels are regions, and there is no regions_class_order: nnU-Net needs a label for each region"]
    if not isinstance(order, list) or len(order) != len(regions) or not all(type(label) is int for label in order):
        return [f"regions_class_order is {order!r}: it must be a list of {len(regions)} labels, one for each region"]
    return []


def _channels(content: Mapping[str, Any]) -> list[str]:
    channels = content.get("channel_names")
    if channels is None and "modality" in content:
        return ["channels stand under 'modality', as in version 1: nnU-Net v2 has 'channel_names'"]
    if not isinstance(channels, dict) or not channels:
        what = "there are no channel_names" if channels is None else f"channel_names is a {_kind(channels)}"
        return [f"{what}: nnU-Net needs a mapping such as {{'0': 'T1'}}"]
    if set(channels) != set(map(str, range(len(channels)))):
        return [f"channel_names are numbered {', '.join(channels)}, not 0 to {len(channels) - 1}"]
    wrong = [number for number, name in channels.items() if not isinstance(name, str) or not name]
    return [f"channel_names: {number}: {str(channels[number])[:80]!r} is no name of a channel" for number in wrong]


def _ending(content: Mapping[str, Any]) -> list[str]:
    ending = content.get("file_ending")
    if isinstance(ending, str) and ending.startswith("."):
        return []
    return ["there is no file_ending" if ending is None else f"file_ending is {ending!r}, not such as '.nii.gz'"]


def _refusal(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Return what nnU-Net itself says about the labels, and this package's commands about the file, if they refuse them."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from nnunet_glims.nnunet.dataset_json import read_dataset_json

    try:
        LabelManager(dict(content["labels"]), content.get("regions_class_order"))
        read_dataset_json(path)
    except UsageError as error:
        return [str(error).removeprefix(f"{path}: ")]
    except Exception as error:  # nnU-Net's assertions and errors
        return [f"nnU-Net refuses the labels: {error}"]
    return []


def _check_is_that_of_the_raw_data(folder: Path, content: Mapping[str, Any]) -> Findings[None]:
    root = os.environ.get("nnUNet_raw")
    path = Path(root, folder.name, "dataset.json") if root else None
    if path is None or not path.is_file():
        return
    raw = read_json(path)
    for key in ("labels", "channel_names", "regions_class_order"):
        if isinstance(raw, dict) and raw.get(key) != content.get(key):
            state = f"{key} in {path} is not what the data were preprocessed with"
            number = int(folder.name.removeprefix("Dataset")[:3])
            yield Finding(TOPIC, "warn", state, f"nnUNetv2_plan_and_preprocess -d {number}, if the change is wanted")
