"""Plans overrides: published and recommended setups that make a new plans file of an old one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json, write_json
from nnunet_glims.networks import network_named
from nnunet_glims.nnunet.plans.configuration import (
    BASE_PLANS,
    complete_configuration,
    planned_configuration,
    preprocess_command,
)
from nnunet_glims.training.recipes import Count, Positive, Recipe
from nnunet_glims.validation import nearest, validate

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
        training: settings of `nnunet_glims.training.recipes.Recipe`.
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


def overridden_plans_name(short_name: str, base: str = BASE_PLANS) -> str:
    """Name of the plans that an override makes of base plans."""
    return f"{base}_{short_name}"


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
        overridden_plans_name(short_name, base),
        f"{short_name}.json",
        overwrite,
    )


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
        changed = complete_configuration(changed, network, {}, where)
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
