"""nnU-Net plans: what a trainer completes them with, and overrides that make a new plans file of an old one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json, write_json
from nnunet_glims.networks import NETWORKS, Network, network_named
from nnunet_glims.recipes import Count, Positive, Recipe
from nnunet_glims.topology import stage_strides
from nnunet_glims.validation import nearest, validate

BASE_PLANS = "nnUNetPlans"
Triple = Annotated[list[Count], Field(min_length=3, max_length=3)]
Spacing = Annotated[list[Positive], Field(min_length=3, max_length=3)]


class Override(BaseModel):
    """A published or recommended setup: what it changes in a plans configuration. What it leaves out stays as planned.

    Attributes:
        description: what the setup is for, in one line.
        source: what is from a paper, what from the authors' code, what is ours.
        network: name in `nnunet_glims.networks`; None leaves the choice to the trainer.
        network_arguments: constructor arguments of the network beside channels, classes, patch and strides.
        patch_size: voxels along nnU-Net's axes (after its transposition, slices first).
        batch_size: patches a step.
        spacing: mm along the same axes. Another spacing than planned needs a preprocessing of its own.
        normalization_schemes: nnU-Net's names, one for all channels or one a channel; likewise.
        training: settings of `nnunet_glims.recipes.Recipe`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    source: str
    network: str | None = None
    network_arguments: dict[str, Any] = {}
    patch_size: Triple | None = None
    batch_size: Count | None = None
    spacing: Spacing | None = None
    normalization_schemes: Annotated[list[str], Field(min_length=1)] | None = None
    training: dict[str, Any] = {}


@dataclass(frozen=True)
class Applied:
    """What `apply_override` did: the file written, its plans name, and the preprocessing command it needs, if any."""

    path: Path
    plans_name: str
    trainer: str | None
    preprocess_command: str | None


def override_names() -> list[str]:
    """Names of the overrides that come with the package."""
    folder = files("nnunet_glims.plans_overrides")
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_override(name: str) -> tuple[str, Override]:
    """An override by name, or a file of the user's own by a path ending in .json; with its short name.

    Raises:
        UsageError: there is none, or it is wrong; the message names file and key.
    """
    if name.endswith(".json"):
        path = Path(name)
    elif name in override_names():
        path = Path(str(files("nnunet_glims.plans_overrides") / f"{name}.json"))
    else:
        raise UsageError(
            f"plans override {name!r} is unknown: {nearest(name, override_names())} "
            "A file of your own must end in .json"
        )
    override = validate(Override, read_json(path), str(path))
    if override.network is not None:
        recipe = network_named(override.network).recipe
    elif override.network_arguments:
        raise UsageError(f"{path}: network_arguments: these need a network to belong to, as `network`")
    else:
        recipe = Recipe()
    recipe.changed(override.training, f"{path}: training")
    return path.stem, override


def complete(
    configuration: Mapping[str, Any], network: Network, arguments: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """A plans configuration with all that the network needs: its `architecture` and the whole `training` block.

    A configuration planned for nnU-Net's own network gets ours, with strides for its patch and spacing. One that names our
    network already keeps its arguments.

    Args:
        configuration: of a plans file, inheritance resolved.
        network: what the trainer trains.
        arguments: of the network, on which the trainer insists.
        where: names the configuration in errors.

    Raises:
        UsageError: the plans name another of our networks, contradict the trainer, or have a wrong training block.
    """
    result = deepcopy(dict(configuration))
    result["training"] = network.recipe.changed(configuration.get("training", {}), f"{where}: training").model_dump()
    planned = configuration.get("architecture", {})
    named = planned.get("network_class_name", "")
    given: dict[str, Any] = dict(planned["arch_kwargs"]) if named == network.path else {}
    for other in NETWORKS:
        if named == other.path and other is not network:
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
    """Raise `UsageError` for a 2D configuration, naming the 3D ones these plans have."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dict(plans))
    sizes = {name: manager.get_configuration(name).configuration.get("patch_size") for name in plans["configurations"]}
    if configuration not in sizes:
        raise UsageError(f"configuration {configuration!r} is not in the plans: {nearest(configuration, list(sizes))}")
    if len(sizes[configuration] or ()) != 3:
        usable = [name for name, size in sizes.items() if size is not None and len(size) == 3]
        raise UsageError(
            f"configuration {configuration!r} is two-dimensional, and these networks are 3D only: "
            f"use {' or '.join(usable) or 'a data set that nnU-Net plans in 3D'}"
        )


def apply_override(
    dataset_folder: Path, name: str, configuration: str = "3d_fullres", base: str = BASE_PLANS, overwrite: bool = False
) -> Applied:
    """Write `nnUNetPlans_<NAME>.json` beside the plans it changes.

    Args:
        dataset_folder: of the data set in nnUNet_preprocessed.
        name: of an override, or a path of a .json file.
        configuration: the one to change; the new plans have no other.
        base: plans to start from.
        overwrite: replace a plans file of the same name and other content.

    Raises:
        UsageError: no plans, no such configuration or override, or a different file of that name is there.
    """
    short_name, override = load_override(name)
    plans, planned = planned_configuration(dataset_folder, configuration, base)
    return write_changed(
        dataset_folder,
        plans,
        configuration,
        planned,
        override,
        f"{BASE_PLANS}_{short_name}",
        f"{short_name}.json",
        overwrite,
    )


def planned_configuration(
    dataset_folder: Path, configuration: str, base: str = BASE_PLANS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and one of their 3D configurations, inheritance resolved and links to others left out.

    Raises:
        UsageError: no plans, no such configuration, 2D, or the second stage of a cascade.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    path = dataset_folder / f"{base}.json"
    if not path.exists():
        raise UsageError(
            f"{path}: there are no plans yet. Run nnUNetv2_plan_and_preprocess first, "
            "or nnUNetv2_plan_experiment where fingerprints are there"
        )
    plans = read_json(path)
    check_is_3d(plans, configuration)
    planned = deepcopy(PlansManager(deepcopy(plans)).get_configuration(configuration).configuration)
    if planned.get("previous_stage"):
        raise UsageError(
            f"configuration {configuration!r} is the second stage of a cascade: overrides do not change those"
        )
    for link in ("inherits_from", "next_stage"):
        planned.pop(link, None)
    return plans, planned


def write_changed(
    dataset_folder: Path,
    plans: Mapping[str, Any],
    configuration: str,
    planned: Mapping[str, Any],
    override: Override,
    plans_name: str,
    where: str,
    overwrite: bool,
) -> Applied:
    """Write plans of one configuration with what the override changes in it; `where` names the override in errors."""
    changed = {**planned, **_changes(planned, override, where)}
    needs_preprocessing = any(
        changed[key] != planned[key] for key in ("spacing", "normalization_schemes", "use_mask_for_norm")
    )
    if needs_preprocessing:
        changed["data_identifier"] = f"{plans_name}_{configuration}"
    trainer = None
    if override.network is not None:
        network = network_named(override.network)
        changed["architecture"] = {"network_class_name": network.path, "arch_kwargs": override.network_arguments}
        changed["training"] = override.training
        changed = complete(changed, network, {}, where)
        trainer = network.trainer
        if override.network_arguments.get("released"):
            trainer += "Released"
    new_plans = {**plans, "plans_name": plans_name, "configurations": {configuration: changed}}
    path = dataset_folder / f"{plans_name}.json"
    if path.exists() and read_json(path) != new_plans and not overwrite:
        raise UsageError(f"{path}: there is another plans file of that name. Replace it with --overwrite")
    write_json(path, new_plans)
    command = None
    if needs_preprocessing:
        command = preprocess_command(new_plans, configuration)
    return Applied(path, plans_name, trainer, command)


def preprocess_command(plans: Mapping[str, Any], configuration: str) -> str:
    """nnU-Net's command that preprocesses a data set for these plans. It takes the number, no name."""
    number = int(plans["dataset_name"].removeprefix("Dataset")[:3])
    return f"nnUNetv2_preprocess -d {number} -plans_name {plans['plans_name']} -c {configuration}"


def _changes(planned: Mapping[str, Any], override: Override, where: str) -> dict[str, Any]:
    changes: dict[str, Any] = {
        key: value for key in ("patch_size", "batch_size", "spacing") if (value := getattr(override, key)) is not None
    }
    if override.training:
        changes["training"] = override.training
    if override.spacing is not None:
        changes["median_image_size_in_voxels"] = [
            round(size * old / new, 1)
            for size, old, new in zip(
                planned["median_image_size_in_voxels"], planned["spacing"], override.spacing, strict=True
            )
        ]
    if override.normalization_schemes is not None:
        channels = len(planned["normalization_schemes"])
        schemes = override.normalization_schemes
        if len(schemes) not in (1, channels):
            raise UsageError(
                f"{where}: normalization_schemes: {len(schemes)} given for a data set of {channels} channels"
            )
        changes["normalization_schemes"] = schemes * (channels // len(schemes))
        changes["use_mask_for_norm"] = [False] * channels
    return changes


def preprocessed_folder(dataset: str) -> Path:
    """The data set's folder in nnUNet_preprocessed, by number or name; raises `UsageError` where there is none."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    root = os.environ.get("nnUNet_preprocessed")
    if not root:
        raise UsageError("the environment variable nnUNet_preprocessed is not set: nnU-Net keeps its plans there")
    try:
        name = maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"data set {dataset!r}: {error}") from None
    folder = Path(root) / name
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder. Run nnUNetv2_plan_and_preprocess -d {dataset} first")
    return folder
