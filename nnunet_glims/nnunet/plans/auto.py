"""Write plans whose patch, batch and checkpointing fit a network and a GPU, to the folder of their base plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.networks import Network
from nnunet_glims.nnunet.dataset_json import label_manager, number_of_cases
from nnunet_glims.nnunet.plans.building import check_network
from nnunet_glims.nnunet.plans.configuration import (
    BASE_PLANS,
    complete_configuration,
    planned_configuration,
    read_base,
    read_plans,
    without_left_open,
)
from nnunet_glims.nnunet.plans.content import checked_name
from nnunet_glims.nnunet.plans.memory import GIB
from nnunet_glims.nnunet.plans.override import Applied, Override, write_overridden
from nnunet_glims.nnunet.plans.record import recorded_overrides
from nnunet_glims.nnunet.plans.sizing import DatasetProperties, TrainingSize, size_for_gpu, with_checkpointing
from nnunet_glims.validation import nearest, validate

MOST_VRAM = 10_000


@dataclass(frozen=True)
class SizedPlans:
    """Plans that were written for a network and a GPU.

    Attributes:
        size: patch, batch and checkpointing.
        applied: the plans file and the next commands.
        description: what was chosen and why, as names and texts to be shown.
    """

    size: TrainingSize
    applied: Applied
    description: Mapping[str, str]


def write_sized_plans(
    dataset_folder: Path,
    network: Network,
    vram: float,
    configuration: str = "3d_fullres",
    base: str = BASE_PLANS,
    name: str | None = None,
    checkpointing: str | None = None,
    overwrite: bool = False,
) -> SizedPlans:
    """Write plans for a network and a GPU. They use the preprocessed data of the base plans.

    If the base plans already name the network, as those of `plans apply` do, its arguments and training settings are kept.
    Other configurations in an existing file are kept.

    Args:
        dataset_folder: folder of the data set in nnUNet_preprocessed.
        network: a registered network.
        vram: memory of the GPU in GB as its maker counts them, that is in GiB.
        configuration: configuration of the base plans for which a size is chosen.
        base: name of the base plans.
        name: name of the new plans; None makes one from base, network and memory.
        checkpointing: value for the network's argument of that name; None chooses one.
        overwrite: whether to replace an existing plans file with other content.

    Raises:
        UsageError: the plans are missing or unsuitable, the memory is too small, a setting is wrong, or a file of that
            name with other content exists.
    """
    if not 0 < vram <= MOST_VRAM:  # also for NaN
        raise UsageError(
            f"--vram {vram:g}: this must be the GPU's memory in GB, for example 8, and at most {MOST_VRAM}"
        )
    name = name or f"{base}_{network.name.lower()}_{vram:g}GB"
    if checked_name(name, "--name ") == base:
        raise UsageError(f"--name {name!r}: this must be another name than the base's")
    setting = _checkpointing(network, checkpointing)
    plans = read_base(dataset_folder, base)
    planned = planned_configuration(plans, configuration)
    arguments = _arguments_in(planned, network, base)
    training = planned.get("training", {})
    properties = _properties(dataset_folder, plans, planned)
    if arguments:  # arguments of the base plans; a wrong one must be reported before sizes are tried with it
        given = {"network_class_name": network.path, "arch_kwargs": arguments}
        asked = complete_configuration({**planned, "architecture": given}, network, {}, base)
        check_network(network, asked, properties.channels, properties.classes, f"{base}.json")
    size = size_for_gpu(
        properties,
        network,
        vram * GIB,
        arguments,
        network.recipe.changed(training, f"{base}: training"),
        setting,
    )
    override = Override(
        description="sized for a GPU",
        source="ours",
        network=network.name,
        network_arguments=with_checkpointing(arguments, size.checkpointing),
        patch_size=list(size.patch_size),
        batch_size=size.batch_size,
        training=training,
    )
    path = dataset_folder / f"{name}.json"
    others = {
        other: validate(Override, content, f"{path}: the record of {other}")
        for other, content in recorded_overrides(path).items()
    }
    overrides = {**others, configuration: override}
    applied = write_overridden(dataset_folder, base, name, configuration, overrides, name, overwrite)
    written = read_plans(applied.path)["configurations"][configuration]
    return SizedPlans(size, applied, _description(size, network, written, vram))


def _checkpointing(network: Network, wanted: str | None) -> str | bool | None:
    """Return the value of the network's argument `checkpointing` that a user named."""
    if wanted is None:
        return None
    values = {str(value): value for value in network.checkpointing}
    if not values:
        raise UsageError(f"--checkpointing: {network.name} has none")
    if wanted not in values:
        raise UsageError(f"--checkpointing {wanted!r}: {nearest(wanted, list(values))}")
    return values[wanted]


def _arguments_in(planned: Mapping[str, Any], network: Network, base: str) -> dict[str, Any]:
    """Return the network's arguments in base plans that name it, without those that are chosen here."""
    architecture = planned.get("architecture", {})
    if architecture.get("network_class_name") != network.path:
        return {}
    arguments = without_left_open(architecture["arch_kwargs"])
    arguments.pop("checkpointing", None)
    if arguments.get("released"):
        raise UsageError(f"{base}: the released GLIMS runs 96×96×96 patches only; start from other plans (-p)")
    return arguments


def _properties(dataset_folder: Path, plans: Mapping[str, Any], planned: Mapping[str, Any]) -> DatasetProperties:
    path = dataset_folder / "dataset.json"
    labels = label_manager(plans, path)
    return DatasetProperties(
        channels=len(planned["normalization_schemes"]),
        classes=labels.num_segmentation_heads,
        regions=labels.has_regions,
        spacing=planned["spacing"],
        median_shape=planned["median_image_size_in_voxels"],
        cases=number_of_cases(path),
        planned_patch=planned["patch_size"],
    )


def _description(size: TrainingSize, network: Network, written: Mapping[str, Any], vram: float) -> dict[str, str]:
    memory = size.memory
    strides = written["architecture"]["arch_kwargs"].get("strides", [])
    return {
        "network": network.name,
        "patch": "×".join(map(str, size.patch_size)),
        "batch": str(size.batch_size),
        "spacing": " × ".join(f"{mm:.4g}" for mm in written["spacing"]) + " mm, as planned",
        "strides": " ".join("×".join(map(str, stride)) for stride in strides[1:]) or "those of the network",
        "checkpointing": "the network has none" if size.checkpointing is None else str(size.checkpointing),
        "memory": f"{memory.total / GIB:.1f} of {vram:g} GB ({memory.total / GIB / vram:.0%}), estimated",
        "  of that": ", ".join(f"{part} {getattr(memory, part) / GIB:.2f}" for part in vars(memory)),
        "limited by": size.limit,
    }
