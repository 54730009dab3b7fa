"""The plans: whether the file is there, is whole, and has the configuration."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_glims.doctor.findings import Finding, Findings, isolated, some

TOPIC = "plans"
_OTHER_FILES = ("dataset.json", "dataset_fingerprint.json", "splits_final.json")
_OF_PLANS = ("dataset_name", "plans_name", "image_reader_writer", "transpose_forward", "transpose_backward")
_OF_CONFIGURATIONS = ("data_identifier", "batch_size", "patch_size", "spacing", "normalization_schemes")
"""Keys without which nnU-Net cannot train."""
_FOUND_BY_PLANS = ("image_reader_writer_class", "label_manager_class")
_FOUND_BY_CONFIGURATIONS = (
    "preprocessor_class",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_probabilities",
)
"""What nnU-Net finds by names in the plans."""


def check(folder: Path, plans_name: str, configuration: str) -> Findings[Mapping[str, Any] | None]:
    """Yield findings about the plans; return them with the configuration if nnU-Net can work with them, else None."""
    from nnunet_glims.nnunet.plans.configuration import read_plans

    path = folder / f"{plans_name}.json"
    if not path.is_file():
        yield Finding(TOPIC, "fail", f"{path}: there is no such file", _where_from(folder, plans_name, configuration))
        return None
    number = int(folder.name.removeprefix("Dataset")[:3])
    again = (
        f"delete {path}, then {_command(folder, plans_name, configuration) or f'nnUNetv2_plan_experiment -d {number}'}"
    )
    plans = yield from isolated(TOPIC, read_plans, path, way_out=again)
    if plans is None:
        return None
    problems = [f"there is no {key}" for key in _OF_PLANS if key not in plans]
    if plans.get("plans_name", plans_name) != plans_name:
        problems.append(f"they are named {plans['plans_name']!r} inside, and nnU-Net would use that name")
    if plans.get("dataset_name", folder.name) != folder.name:
        problems.append(f"they were made for {plans['dataset_name']!r}, not for {folder.name}")
    if "transpose_forward" in plans and sorted(map(str, plans["transpose_forward"])) != ["0", "1", "2"]:
        problems.append(f"transpose_forward is {plans['transpose_forward']!r}, not an order of the axes 0, 1 and 2")
    for problem in problems:
        yield Finding(TOPIC, "fail", f"{path}: {problem}", again)
    usable = yield from isolated(TOPIC, _check_configuration, path, plans, configuration, way_out="see docs/plans.md")
    return plans if usable and not problems else None


def _check_configuration(path: Path, plans: Mapping[str, Any], name: str) -> Findings[bool]:
    """Return whether the configuration is there, is 3D, and has what nnU-Net needs."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_glims.nnunet.plans.configuration import check_is_3d
    from nnunet_glims.nnunet.plans.content import resolved

    if name in plans["configurations"]:
        found = resolved(plans["configurations"], name)
        needed = _OF_CONFIGURATIONS if "UNet_class_name" in found else (*_OF_CONFIGURATIONS, "architecture")
        missing = [key for key in needed if key not in found]
        problems = [f"has no {' and no '.join(missing)}"] if missing else []
        if not missing:
            manager = PlansManager(dict(plans))
            asked = [(manager, _FOUND_BY_PLANS), (manager.get_configuration(name), _FOUND_BY_CONFIGURATIONS)]
            problems = [text for one, keys in asked for key in keys if (text := _not_found(one, key))]
        for problem in problems:
            state = f"{path}: configuration {name!r} {problem}"
            yield Finding(TOPIC, "fail", state, f"delete {path} and plan again")
        if problems:
            return False
    check_is_3d(plans, name)
    return True


def _not_found(manager: Any, key: str) -> str:
    """Return why nnU-Net does not find the code that plans name under a key; an empty text if it does."""
    try:
        return "" if getattr(manager, key) is not None else f"names code for {key} that nnU-Net does not find"
    except Exception as error:  # nnU-Net's assertions, and whatever a value of another type leads to
        return f"is no use to nnU-Net, which asks for {key}: {type(error).__name__}: {error}"


def _where_from(folder: Path, plans_name: str, configuration: str) -> str:
    """Return how to get plans that are not there."""
    from nnunet_glims.validation import nearest

    number = int(folder.name.removeprefix("Dataset")[:3])
    command = _command(folder, plans_name, configuration)
    if command:
        return command
    others = _others(folder)
    if others:
        take = (
            f"-p {others[0]}" if len(others) == 1 else f"-p with one of {some(others)} ({nearest(plans_name, others)})"
        )
        if plans_name == "nnUNetPlans":
            return f"{take}, or nnUNetv2_plan_experiment -d {number}"
        return take
    if (folder / "dataset_fingerprint.json").is_file():
        return f"nnUNetv2_plan_experiment -d {number}"
    return f"nnUNetv2_plan_and_preprocess -d {number} -c {configuration}"


def _command(folder: Path, plans_name: str, configuration: str) -> str:
    """Return the command of this package that makes plans of that name from others that are there; empty if there is none."""
    from nnunet_glims.networks import networks
    from nnunet_glims.nnunet.plans.override import override_names

    end = f"-d {folder.name}" + (f" -c {configuration}" if configuration != "3d_fullres" else "")
    for base in sorted(_others(folder), key=len, reverse=True):
        suffix = plans_name.removeprefix(f"{base}_")
        if suffix == plans_name:
            continue
        start = "" if base == "nnUNetPlans" else f" -p {base}"
        if suffix in override_names():
            return f"nnunet-glims plans apply {suffix} {end}{start}"
        sized = re.fullmatch(r"(.+)_([\d.]+)GB", suffix, re.IGNORECASE)
        if sized and sized[1].lower() in [network.name.lower() for network in networks()]:
            return f"nnunet-glims plans auto --network {sized[1].lower()} --vram {sized[2]} {end}{start}"
        return f"nnunet-glims plans apply {suffix}.json {end}{start}, with the override file of that name"
    return ""


def _others(folder: Path) -> list[str]:
    """Return the names of the plans in the folder."""
    from nnunet_glims.errors import UsageError
    from nnunet_glims.nnunet.plans.configuration import read_plans

    names = []
    for path in sorted(folder.glob("*.json")):
        if path.name not in _OTHER_FILES:
            with contextlib.suppress(UsageError):  # not a plans file
                read_plans(path)
                names.append(path.stem)
    return names
