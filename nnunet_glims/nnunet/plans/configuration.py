"""Read and check configurations of nnU-Net's plans, and complete them for one of the registered networks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json_document
from nnunet_glims.networks import Network, network_of_class
from nnunet_glims.nnunet.plans.content import check_plans, resolved
from nnunet_glims.topology import stage_strides
from nnunet_glims.validation import nearest

BASE_PLANS = "nnUNetPlans"

_NEEDED = (
    "data_identifier",
    "patch_size",
    "batch_size",
    "spacing",
    "median_image_size_in_voxels",
    "normalization_schemes",
    "use_mask_for_norm",
)
"""Keys without which a configuration cannot be changed or trained."""


def complete_configuration(
    configuration: Mapping[str, Any], network: Network, arguments: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return a plans configuration with all that training needs: its `architecture` and the whole `training` block.

    A configuration that was planned for nnU-Net's own network gets ours, with strides for its patch and spacing. A
    configuration that names our network already keeps its arguments.

    Args:
        configuration: of a plans file, with inheritance resolved.
        network: the network that the trainer trains.
        arguments: constructor arguments of the network on which the trainer insists.
        where: names the configuration in errors.

    Raises:
        UsageError: the plans name another registered network, contradict the trainer, or have a wrong training block.
    """
    result = deepcopy(dict(configuration))
    result["training"] = network.recipe.changed(configuration.get("training", {}), f"{where}: training").model_dump()
    planned = configuration.get("architecture", {})
    named = planned.get("network_class_name", "")
    given: dict[str, Any] = dict(planned["arch_kwargs"]) if named == network.path else {}
    other = network_of_class(named)
    if other is not None and other.name != network.name:
        raise UsageError(
            f"{where}: the plans are made for {other.name}, the trainer trains {network.name}: "
            f"use -tr {other.trainer}, or other plans (-p)"
        )
    expected = {"patch_size": list(configuration["patch_size"]), **arguments}
    for name, value in expected.items():
        if given.get(name, value) != value:
            raise UsageError(
                f"{where}: architecture.arch_kwargs.{name} is {given[name]!r}, but the trainer and the configuration "
                f"ask for {value!r}: make them agree"
            )
    if network.stages is not None:
        given.setdefault(
            "strides", stage_strides(configuration["patch_size"], configuration["spacing"], network.stages)
        )
    result["architecture"] = {
        "network_class_name": network.path,
        "arch_kwargs": {**given, **expected},
        "_kw_requires_import": [],
    }
    return result


def check_is_3d(plans: Mapping[str, Any], configuration: str) -> None:
    """Raise `UsageError` for a 2D configuration; the message names the 3D configurations of these plans."""
    found = plans["configurations"]
    sizes = {name: resolved(found, name).get("patch_size") for name in found}
    if configuration not in sizes:
        raise UsageError(f"configuration {configuration!r} is not in the plans: {nearest(configuration, list(sizes))}")
    if len(sizes[configuration] or ()) != 3:
        usable = [name for name, size in sizes.items() if size is not None and len(size) == 3]
        raise UsageError(
            f"configuration {configuration!r} is two-dimensional, and these networks are 3D only: "
            f"use {' or '.join(usable) or 'a data set that nnU-Net plans in 3D'}"
        )


def read_plans(path: Path) -> dict[str, Any]:
    """Return the content of a plans file; raise `UsageError` if it is missing or holds no plans, see `check_plans`."""
    document = read_json_document(path)
    try:
        return check_plans(document, str(path))
    except UsageError as error:
        advice = "These are no plans that nnU-Net can use: correct them, or delete the file and plan again"
        raise UsageError(f"{error}\n{advice}") from None


def read_base(dataset_folder: Path, base: str = BASE_PLANS) -> dict[str, Any]:
    """Return the content of a plans file in a data set's folder; raise `UsageError` if it is missing or holds no plans."""
    path = dataset_folder / f"{base}.json"
    if not path.exists():
        raise UsageError(
            f"{path}: there are no plans yet. Run nnUNetv2_plan_and_preprocess first, "
            "or nnUNetv2_plan_experiment where fingerprints are there"
        )
    plans = read_plans(path)
    if (name := plans.get("dataset_name", dataset_folder.name)) != dataset_folder.name:
        raise UsageError(
            f"{path}: dataset_name: these are plans of {name}, and nnU-Net would write to its folder: plan this data set again"
        )
    return plans


def planned_configuration(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return a 3D configuration of plans, with inheritance resolved and links to other configurations left out.

    Raises:
        UsageError: there is no such configuration, it is 2D, or it is the second stage of a cascade.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    check_is_3d(plans, configuration)
    check_complete(plans, configuration)
    planned = deepcopy(PlansManager(deepcopy(dict(plans))).get_configuration(configuration).configuration)
    if planned.get("previous_stage"):
        raise UsageError(
            f"configuration {configuration!r} is the second stage of a cascade: overrides do not change those"
        )
    for link in ("inherits_from", "next_stage"):
        planned.pop(link, None)
    return planned


def check_complete(plans: Mapping[str, Any], configuration: str) -> None:
    """Raise `UsageError` where a configuration of plans, or the plans, lack what every training needs."""
    planned = resolved(plans["configurations"], configuration)
    missing = [key for key in _NEEDED if key not in planned]
    if "architecture" not in planned and "UNet_class_name" not in planned:  # the latter in plans of nnU-Net before 2.4
        missing.append("architecture")
    missing += [key for key in ("dataset_name", "image_reader_writer") if key not in plans]
    if missing:
        name = plans["plans_name"]
        raise UsageError(
            f"{name}: {configuration}: it has no {', no '.join(missing)}: plan again with nnUNetv2_plan_experiment"
        )


def check_fits_strides(planned: Mapping[str, Any], where: str) -> None:
    """Raise `UsageError` where the patch of a configuration does not fit the strides of the network in it."""
    patch = planned["patch_size"]
    strides = planned.get("architecture", {}).get("arch_kwargs", {}).get("strides")
    if isinstance(strides, list) and all(isinstance(stride, list) and len(stride) == len(patch) for stride in strides):
        divisors = [prod(stride[axis] for stride in strides) for axis in range(len(patch))]
        if any(divisor == 0 or side % divisor for side, divisor in zip(patch, divisors, strict=True)):
            raise UsageError(
                f"{where}: patch_size: {'×'.join(map(str, patch))} does not fit the network of these plans, whose strides "
                f"need multiples of {'×'.join(map(str, divisors))}"
            )


def without_left_open(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's arguments without those that are derived from patch and spacing."""
    return {name: value for name, value in arguments.items() if name not in ("patch_size", "strides")}


def preprocess_command(plans: Mapping[str, Any], configuration: str) -> str:
    """Return nnU-Net's command that preprocesses a data set for these plans; it takes the data set's number only."""
    number = int(plans["dataset_name"].removeprefix("Dataset")[:3])
    return f"nnUNetv2_preprocess -d {number} -plans_name {plans['plans_name']} -c {configuration}"
