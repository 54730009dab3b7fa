"""Patch, batch and checkpointing of our networks for a GPU's memory: what nnU-Net's planner does for its own network.

As there, patches start with the same length in mm along all axes, cut to the median image, and shrink along the axis that
covers most of that image; batches are of two patches at least and of 5 % of the data set at most. What differs: memory is
counted (`nnunet_glims.nnunet.plans.memory`), and where no patch of that row uses the GPU well, one of similar shape does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, isfinite, log, prod
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json
from nnunet_glims.networks import Network
from nnunet_glims.nnunet.plans.configuration import BASE_PLANS, complete_configuration, planned_configuration
from nnunet_glims.nnunet.plans.memory import GIB, StepMemory, training_step
from nnunet_glims.nnunet.plans.override import Applied, Override, write_changed
from nnunet_glims.topology import Triple, triple
from nnunet_glims.training.recipes import Recipe
from nnunet_glims.validation import nearest

FIRST_VOLUME = 256**3
"""Voxels of the largest patch that is looked at, as in nnU-Net; eight times as many where those fit."""
SMALLEST_EDGE = 4
"""Voxels down to which an axis is halved, as in nnU-Net."""
SMALLEST_SIDE = 16
SMALLEST_BATCH = 2
LARGEST_PART = 0.05
"""Of the data set's voxels in a batch, as in nnU-Net."""
GOOD_USE = 0.9
"""Part of the memory that a plan should use."""
WORTHWHILE = 1.25
"""By how much the patch must grow for slower checkpointing to be taken."""
REACH = 0.25
"""By how much the sides of similar shapes differ, where that is more than two steps."""
TRIES = 6
"""Similar shapes that are counted at most."""


@dataclass(frozen=True)
class DatasetProperties:
    """What of a data set and its plans decides. Shapes are voxels along nnU-Net's axes."""

    channels: int
    heads: int
    regions: bool
    spacing: Sequence[float]
    median_shape: Sequence[float]
    cases: int
    planned_patch: Sequence[int]


@dataclass(frozen=True)
class TrainingSize:
    """What was chosen, what it takes, and what keeps it from being larger."""

    patch_size: Triple
    batch_size: int
    checkpointing: str | bool | None
    memory: StepMemory
    limit: str


def _padded(size: Sequence[int], spacing: Sequence[float], network: Network) -> tuple[Triple, Triple]:
    """The size made divisible as the network asks, by nnU-Net's rule, and what it is divisible by."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    by_spacing = network.stages is not None
    *_, padded, divisors = get_pool_and_conv_props(
        spacing if by_spacing else (1.0, 1.0, 1.0), size, SMALLEST_EDGE if by_spacing else 1, network.halvings
    )
    return triple(map(int, padded)), triple(map(int, divisors))


def shrinking_patches(data: DatasetProperties, network: Network, volume: int) -> Iterator[Triple]:
    """Patch sizes from the largest of that many voxels, or the median image, down to the smallest that makes sense."""
    scale = (volume * prod(data.spacing)) ** (1 / 3)
    image = [ceil(size) for size in data.median_shape]
    patch, divisors = _padded(
        [max(1, min(round(scale / mm), size)) for mm, size in zip(data.spacing, image, strict=True)],
        data.spacing,
        network,
    )
    while True:
        yield patch
        axes = [axis for axis in range(3) if patch[axis] - divisors[axis] >= SMALLEST_SIDE]
        if not axes:
            return
        axis = max(axes, key=lambda axis: patch[axis] / image[axis])
        smaller = list(patch)
        smaller[axis] -= divisors[axis]
        _, divisors = _padded(smaller, data.spacing, network)  # a smaller patch may need to be divisible by less
        smaller = list(patch)
        smaller[axis] -= divisors[axis]
        patch, divisors = _padded(smaller, data.spacing, network)


@dataclass
class _Search:
    """Counts memory for one data set and network, each setting once."""

    data: DatasetProperties
    network: Network
    arguments: Mapping[str, Any]
    recipe: Recipe
    budget: float
    kernels: bool | None
    counted: dict[tuple, StepMemory] = field(default_factory=dict)

    def memory(self, patch: Triple, batch: int, checkpointing: str | bool | None) -> StepMemory:
        key = (patch, batch, checkpointing)
        if key not in self.counted:
            network = self._build(patch, checkpointing)
            self.counted[key] = training_step(
                network, patch, batch, self.recipe, "cuda", self.data.regions, self.kernels
            )
        return self.counted[key]

    def _build(self, patch: Triple, checkpointing: str | bool | None):
        import torch

        from nnunet_glims import architectures

        configuration = {
            "patch_size": list(patch),
            "spacing": list(self.data.spacing),
            "architecture": {
                "network_class_name": self.network.path,
                "arch_kwargs": _arguments(self.arguments, checkpointing),
            },
        }
        arguments = complete_configuration(configuration, self.network, {}, "plans auto")["architecture"]["arch_kwargs"]
        # On the meta device building takes no time. MONAI looks at values while it builds, so Swin UNETR cannot.
        with torch.device("cpu" if self.network.stages is None else "meta"):
            return getattr(architectures, self.network.name)(
                self.data.channels, self.data.heads, deep_supervision=self.recipe.deep_supervision, **arguments
            )

    def largest(self, checkpointing: str | bool | None) -> tuple[Triple, Triple | None] | None:
        """The largest patch that fits in pairs, and the next larger one, None for the whole image; None if none fits."""
        volume = FIRST_VOLUME
        while True:
            patches = list(shrinking_patches(self.data, self.network, volume))
            index = self._first_that_fits(patches, checkpointing)
            if index is None:
                return None
            if index > 0:
                return patches[index], patches[index - 1]
            volume *= 8
            if next(shrinking_patches(self.data, self.network, volume)) == patches[0]:
                return patches[0], None

    def _first_that_fits(self, patches: Sequence[Triple], checkpointing: str | bool | None) -> int | None:
        """Found by interpolation: memory is nearly linear in voxels."""
        too_large, fits = -1, len(patches)
        guess = min(range(len(patches)), key=lambda index: abs(prod(patches[index]) - prod(self.data.planned_patch)))
        points: list[tuple[int, int]] = [(0, 0)]
        while fits - too_large > 1:
            guess = min(max(guess, too_large + 1), fits - 1)
            total = self.memory(patches[guess], SMALLEST_BATCH, checkpointing).total
            points.append((prod(patches[guess]), total))
            if total <= self.budget:
                fits = guess
            else:
                too_large = guess
            voxels = _size_for(self.budget, points[-2], points[-1])
            guess = next((index for index, patch in enumerate(patches) if prod(patch) <= voxels), fits)
        return fits if fits < len(patches) else None

    def similar(
        self, patch: Triple, larger: Triple, checkpointing: str | bool | None
    ) -> Iterator[tuple[Triple, StepMemory]]:
        """The patch, then others of nearly its shape that promise to use the memory well, the most alike first."""
        known = self.memory(patch, SMALLEST_BATCH, checkpointing)
        yield patch, known
        points = [(prod(size), self.memory(size, SMALLEST_BATCH, checkpointing).total) for size in (patch, larger)]
        least, most = (_size_for(use * self.budget, *points) for use in (GOOD_USE, 1))
        image, _ = _padded([ceil(size) for size in self.data.median_shape], self.data.spacing, self.network)
        _, divisors = _padded(patch, self.data.spacing, self.network)
        sides = []
        for side, step, whole in zip(patch, divisors, image, strict=True):
            reach = max(2, round(REACH * side / step))
            around = (side + times * step for times in range(-reach, reach + 1))
            sides.append([other for other in around if min(SMALLEST_SIDE, whole) <= other <= whole])
        found: dict[Triple, tuple[bool, float]] = {}
        for size in map(triple, product(*sides)):
            if prod(patch) < prod(size) <= most and _padded(size, self.data.spacing, self.network)[0] == size:
                change = sum(abs(log(other / side)) for side, other in zip(patch, size, strict=True))
                found[size] = (False, change) if prod(size) >= least else (True, -prod(size))
        for size in sorted(found, key=lambda size: found[size])[:TRIES]:
            memory = self.memory(size, SMALLEST_BATCH, checkpointing)
            if memory.total <= self.budget:
                yield size, memory


def _size_for(total: float, one: tuple[int, int], other: tuple[int, int]) -> float:
    """The size whose memory is `total`, on the line through two points (size, memory)."""
    (x, y), (x2, y2) = one, other
    return x + (total - y) * (x2 - x) / (y2 - y) if y2 != y else x


def _arguments(arguments: Mapping[str, Any], checkpointing: str | bool | None) -> dict[str, Any]:
    return {**arguments, **({} if checkpointing is None else {"checkpointing": checkpointing})}


def size_for_gpu(
    data: DatasetProperties,
    network: Network,
    budget: float,
    arguments: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    checkpointing: str | bool | None = None,
    kernels: bool | None = None,
) -> TrainingSize:
    """The largest training step of a network that fits a GPU.

    Checkpointing is the fastest with which the patch is as large as nnU-Net planned for its own network; a slower one is
    taken for a patch that is a quarter larger at least.

    Args:
        data: the data set.
        network: one of ours.
        budget: bytes of the GPU.
        arguments: of the network, beside patch, strides and checkpointing.
        recipe: how it is trained; None means as its trainer does.
        checkpointing: take this one; None chooses.
        kernels: whether the GPU has the package's kernels; None asks this machine.

    Raises:
        UsageError: not even a small patch fits.
    """
    search = _Search(data, network, arguments or {}, recipe or network.recipe, budget, kernels)
    settings = network.checkpointing or (None,)
    best: tuple[Triple, Triple | None, str | bool | None] | None = None
    for setting in settings if checkpointing is None else (checkpointing,):
        found = search.largest(setting)
        if found is not None and (best is None or prod(found[0]) >= WORTHWHILE * prod(best[0])):
            best = (*found, setting)
        if best is not None and (best[1] is None or prod(best[0]) >= prod(data.planned_patch)):
            break
    if best is None:
        least = min(search.counted.values(), key=lambda memory: memory.total)
        raise UsageError(
            f"{budget / GIB:g} GB are too little: two of the smallest patches take {least.total / GIB:.1f} GB with "
            f"{network.name}. Give --vram more, or take a lighter network"
        )
    patch, larger, setting = best
    if larger is None:
        return _batch(search, patch, setting)
    found_use = 0
    for size, memory in search.similar(patch, larger, setting):
        if memory.total > found_use:
            patch, found_use = size, memory.total
        if found_use >= GOOD_USE * budget:
            break
    memory = search.memory(patch, SMALLEST_BATCH, setting)
    return TrainingSize(patch, SMALLEST_BATCH, setting, memory, "the memory: a larger patch would not fit")


def _batch(search: _Search, patch: Triple, checkpointing: str | bool | None) -> TrainingSize:
    """The largest batch of patches that are as large as the median image."""
    data = search.data
    allowed = round(LARGEST_PART * prod(data.median_shape) * data.cases / prod(patch))
    batch = max(SMALLEST_BATCH, allowed)
    takes = search.memory(patch, batch, checkpointing).total
    if takes > search.budget:
        least = search.memory(patch, SMALLEST_BATCH, checkpointing).total
        batch = int(_size_for(search.budget, (SMALLEST_BATCH, least), (batch, takes)))
        while search.memory(patch, batch, checkpointing).total > search.budget:
            batch -= 1
    limit = "the image: a patch is all of it; a larger batch would not fit"
    if batch >= allowed:
        limit = f"the data set: a patch is all of the image, and a batch no more than {LARGEST_PART:.0%} of all voxels"
        limit += f" (but {SMALLEST_BATCH} patches)" if allowed < SMALLEST_BATCH else ""
    return TrainingSize(patch, batch, checkpointing, search.memory(patch, batch, checkpointing), limit)


def write_sized_plans(
    dataset_folder: Path,
    network: Network,
    vram: float,
    configuration: str = "3d_fullres",
    base: str = BASE_PLANS,
    name: str | None = None,
    checkpointing: str | None = None,
    overwrite: bool = False,
) -> tuple[TrainingSize, Applied]:
    """Write a plans file for a network and a GPU beside the plans it starts from. Spacing and normalisation stay.

    A base that names the network already (see `plans apply`) keeps its arguments and training settings.

    Args:
        dataset_folder: of the data set in nnUNet_preprocessed.
        network: one of ours.
        vram: GB of the GPU as its maker counts, which are GiB.
        configuration, base: what to start from.
        name: of the new plans; None makes one of base, network and memory.
        checkpointing: of the network; None chooses.
        overwrite: replace a plans file of that name and other content.

    Raises:
        UsageError: missing or unsuitable plans, too little memory, a wrong setting, or a different file of that name.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if not (isfinite(vram) and vram > 0):
        raise UsageError(f"--vram {vram:g}: this must be the GPU's memory in GB, for example 8")
    name = name or f"{base}_{network.name.lower()}_{vram:g}GB"
    if Path(name).name != name or "__" in name or name == base:
        raise UsageError(f"--name {name!r}: this must be a file name without __, other than the base's")
    if checkpointing is not None and checkpointing not in (known := [str(value) for value in network.checkpointing]):
        raise UsageError(
            f"--checkpointing {checkpointing!r}: {nearest(checkpointing, known)}"
            if known
            else f"--checkpointing: {network.name} has none"
        )
    setting = next((value for value in network.checkpointing if str(value) == checkpointing), None)
    plans, planned = planned_configuration(dataset_folder, configuration, base)
    described = read_json(dataset_folder / "dataset.json")
    labels = PlansManager(plans).get_label_manager(described)
    architecture = planned.get("architecture", {})
    arguments = {}
    if architecture.get("network_class_name") == network.path:
        left_open = ("patch_size", "strides", "checkpointing")
        arguments = {key: value for key, value in architecture["arch_kwargs"].items() if key not in left_open}
    if arguments.get("released"):
        raise UsageError(f"{base}: the released GLIMS runs 96×96×96 patches only; start from other plans (-p)")
    training = planned.get("training", {})
    data = DatasetProperties(
        channels=len(described["channel_names"]),
        heads=labels.num_segmentation_heads,
        regions=labels.has_regions,
        spacing=planned["spacing"],
        median_shape=planned["median_image_size_in_voxels"],
        cases=described["numTraining"],
        planned_patch=planned["patch_size"],
    )
    fitted = size_for_gpu(data, network, vram * GIB, arguments, network.recipe.changed(training, base), setting)
    override = Override(
        description="sized for a GPU",
        source="ours",
        network=network.name,
        network_arguments=_arguments(arguments, fitted.checkpointing),
        patch_size=list(fitted.patch_size),
        batch_size=fitted.batch_size,
        training=training,
    )
    applied = write_changed(dataset_folder, plans, configuration, planned, override, name, name, overwrite)
    return fitted, applied
