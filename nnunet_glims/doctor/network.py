"""The network that the trainer would train with the plans: its patch, size and memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_glims.doctor.device import first_memory
from nnunet_glims.doctor.findings import Finding, Findings, isolated


def check(
    folder: Path, plans: Mapping[str, Any], described: Mapping[str, Any] | None, trainer: str, configuration: str
) -> Findings[None]:
    """Yield findings about the network; without a dataset.json it is not known."""
    from nnunet_glims.architectures.complexity import count_gmac, count_parameters
    from nnunet_glims.networks import network_of_trainer
    from nnunet_glims.nnunet.dataset_json import label_manager
    from nnunet_glims.nnunet.plans.building import build_without_content, check_network
    from nnunet_glims.nnunet.plans.configuration import complete_configuration
    from nnunet_glims.nnunet.plans.content import resolved
    from nnunet_glims.training.recipes import Recipe

    ours = network_of_trainer(trainer)
    if ours is None:
        yield Finding("network", "ok", f"{trainer} is not one of ours: its network was not looked at")
        return
    if described is None:
        yield Finding("network", "fail", "not looked at", "correct dataset.json first")
        return
    planned = resolved(plans["configurations"], configuration)
    completed = complete_configuration(planned, ours, ours.trainers[trainer], plans["plans_name"])
    labels = label_manager(plans, folder / "dataset.json")
    channels, patch, batch = len(described["channel_names"]), completed["patch_size"], completed["batch_size"]
    heads, arguments = labels.num_segmentation_heads, completed["architecture"]["arch_kwargs"]
    check_network(ours, completed, channels, heads, f"{plans['plans_name']}: {configuration}")
    recipe = Recipe(**completed["training"])
    network = build_without_content(ours, channels, heads, arguments, recipe.deep_supervision)
    strides = " ".join("×".join(map(str, step)) for step in network.strides[1:])
    yield Finding("patch and batch", "ok", f"{'×'.join(map(str, patch))}, batch {batch}; strides {strides}")
    step = (network, patch, batch, recipe, labels.has_regions)
    smaller = f"nnunet-glims plans auto -d {folder.name} --network {ours.name.lower()} --vram GB"
    yield from isolated("training memory", _check_memory, step, smaller)
    size, gmac = count_parameters(network) / 1e6, count_gmac(network, channels, patch)
    yield Finding("network", "ok", f"{ours.name}: {size:.1f} M parameters, {gmac:.0f} GMAC a patch")


def _check_memory(step: tuple[Any, ...], smaller: str) -> Findings[None]:
    """Yield whether a training step fits into the memory; nothing where the variable for the precision is wrong."""
    from nnunet_glims.errors import UsageError
    from nnunet_glims.nnunet.plans.memory import GIB, in_half_precision, training_step

    network, patch, batch, recipe, has_regions = step
    available, device, where = first_memory()
    try:
        precision = "half precision" if in_half_precision(recipe, device) else "float32"
    except UsageError:  # which is a finding of its own
        return
    required = training_step(network, patch, batch, recipe, device, has_regions).total / GIB
    text = f"a training step takes about {required:.1f} GiB in {precision} ({where}: {available:.0f} GiB)"
    if required > available:
        yield Finding("training memory", "warn", text, smaller)
    else:
        yield Finding("training memory", "ok", text)
