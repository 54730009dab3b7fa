"""Find the largest training step that fits a GPU's memory: patch, batch and checkpointing for a network and a data set.

As in nnU-Net's planner for its own network, patches start with the same length in mm along all axes, cut to the median
image, and shrink along the axis that covers most of that image; a batch has at least two patches and at most 5 % of the
data set's voxels. Two things differ: memory is counted (`nnunet_glims.nnunet.plans.memory`), and if the patch found in
this way leaves much of it unused, a patch of similar shape that uses more is searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, log, prod
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.networks import Network
from nnunet_glims.nnunet.plans.building import build_without_content
from nnunet_glims.nnunet.plans.configuration import complete_configuration
from nnunet_glims.nnunet.plans.memory import GIB, StepMemory, training_step
from nnunet_glims.topology import Triple, triple
from nnunet_glims.training.recipes import Recipe

# These four values are constants inside nnU-Net's planner; a test compares them with its source.
FIRST_VOLUME = 256**3
"""Voxels of the largest patch that is tried first. If it fits, eight times as many are tried, and so on."""
SMALLEST_EDGE = 4
"""Number of voxels along an axis down to which it is halved."""
SMALLEST_BATCH = 2
"""Number of patches in the smallest batch."""
LARGEST_PART = 0.05
"""Largest fraction of the data set's voxels that a batch may have."""

SMALLEST_SIDE = 16
"""Smallest number of voxels along a side of a patch, unless the image is smaller."""
GOOD_USE = 0.9
"""Fraction of the memory that plans should use at least."""
WORTHWHILE = 1.25
"""Factor by which a patch must grow for slower checkpointing to be chosen."""
REACH = 0.25
"""Largest difference of the sides of similar patches as a fraction of the side; at least two steps are tried."""
MOST_SIMILAR = 6
"""Number of similar patches whose memory is counted."""


@dataclass(frozen=True)
class DatasetProperties:
    """The properties of a data set on which sizes depend.

    Attributes:
        channels: number of channels of the image.
        classes: number of channels of the logits.
        regions: whether overlapping regions are trained instead of labels.
        spacing: spacing in mm along nnU-Net's axes.
        median_shape: voxels of the median image at that spacing.
        cases: number of training cases.
        planned_patch: voxels of the patch that nnU-Net planned for its own network.
    """

    channels: int
    classes: int
    regions: bool
    spacing: Sequence[float]
    median_shape: Sequence[float]
    cases: int
    planned_patch: Sequence[int]


@dataclass(frozen=True)
class TrainingSize:
    """The chosen size of a training step.

    Attributes:
        patch_size: voxels along nnU-Net's axes.
        batch_size: number of patches in a step.
        checkpointing: value of the network's argument of that name; None if it has no such argument.
        memory: memory of a training step.
        limit: what keeps patch and batch from being larger, as text.
    """

    patch_size: Triple
    batch_size: int
    checkpointing: str | bool | None
    memory: StepMemory
    limit: str


def _padded(size: Sequence[int], spacing: Sequence[float], network: Network) -> tuple[Triple, Triple]:
    """Return the size padded to multiples of the network's divisors by nnU-Net's rule, and the divisor of each side."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    by_spacing = network.stages is not None
    *_, padded, divisors = get_pool_and_conv_props(
        spacing if by_spacing else (1.0, 1.0, 1.0), size, SMALLEST_EDGE if by_spacing else 1, network.halvings
    )
    return triple(map(int, padded)), triple(map(int, divisors))


def shrinking_patches(data: DatasetProperties, network: Network, volume: int) -> Iterator[Triple]:
    """Yield patch sizes of decreasing volume, from the median image or `volume` voxels down to the smallest useful size."""
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
        _, divisors = _padded(smaller, data.spacing, network)  # the divisors of a smaller patch may be smaller
        smaller = list(patch)
        smaller[axis] -= divisors[axis]
        patch, divisors = _padded(smaller, data.spacing, network)


@dataclass
class _Search:
    """The search for one data set and network. The memory of each setting is counted once."""

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
        configuration = {
            "patch_size": list(patch),
            "spacing": list(self.data.spacing),
            "architecture": {
                "network_class_name": self.network.path,
                "arch_kwargs": with_checkpointing(self.arguments, checkpointing),
            },
        }
        arguments = complete_configuration(configuration, self.network, {}, "plans auto")["architecture"]["arch_kwargs"]
        return build_without_content(
            self.network, self.data.channels, self.data.classes, arguments, self.recipe.deep_supervision
        )

    def largest_patch(self, checkpointing: str | bool | None) -> tuple[Triple, Triple | None] | None:
        """Return the largest patch of which two fit, and the next larger patch; None if no patch fits.

        The next larger patch is None if the largest one is the whole image.
        """
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
        """Return the index of the first patch of which two fit; None if there is none.

        The search interpolates, because memory is nearly linear in the number of voxels.
        """
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
            voxels = _size_at(self.budget, points[-2], points[-1])
            guess = next((index for index, patch in enumerate(patches) if prod(patch) <= voxels), fits)
        return fits if fits < len(patches) else None

    def similar_patches(
        self, patch: Triple, larger: Triple, checkpointing: str | bool | None
    ) -> Iterator[tuple[Triple, StepMemory]]:
        """Yield the patch, then patches of similar shape that should use the memory well, the most similar ones first."""
        known = self.memory(patch, SMALLEST_BATCH, checkpointing)
        yield patch, known
        points = [(prod(size), self.memory(size, SMALLEST_BATCH, checkpointing).total) for size in (patch, larger)]
        least, most = (_size_at(use * self.budget, *points) for use in (GOOD_USE, 1))
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
        for size in sorted(found, key=lambda size: found[size])[:MOST_SIMILAR]:
            memory = self.memory(size, SMALLEST_BATCH, checkpointing)
            if memory.total <= self.budget:
                yield size, memory


def _size_at(total: float, one: tuple[int, int], other: tuple[int, int]) -> float:
    """Return the size whose memory is `total`, by linear interpolation between two points (size, memory)."""
    (x, y), (x2, y2) = one, other
    return x + (total - y) * (x2 - x) / (y2 - y) if y2 != y else x


def with_checkpointing(arguments: Mapping[str, Any], checkpointing: str | bool | None) -> dict[str, Any]:
    """Return the arguments with this value of checkpointing; with None, without any."""
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
    """Find the largest training step of a network that fits a GPU.

    Of the values of checkpointing, the fastest is chosen with which the patch is as large as the one that nnU-Net planned for
    its own network. A slower one is chosen only if the patch becomes larger by a quarter or more.

    Args:
        data: the properties of the data set.
        network: a registered network.
        budget: memory of the GPU in bytes.
        arguments: constructor arguments of the network other than patch, strides and checkpointing.
        recipe: the recipe of the training; None takes that of the network's trainer.
        checkpointing: value to use; None chooses one.
        kernels: whether the GPU has the package's kernels; None assumes those of this machine.

    Raises:
        UsageError: two of the smallest patches do not fit.
    """
    search = _Search(data, network, arguments or {}, recipe or network.recipe, budget, kernels)
    settings = network.checkpointing or (None,)
    best: tuple[Triple, Triple | None, str | bool | None] | None = None
    for setting in settings if checkpointing is None else (checkpointing,):
        found = search.largest_patch(setting)
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
    most_used = 0
    for size, memory in search.similar_patches(patch, larger, setting):
        if memory.total > most_used:
            patch, most_used = size, memory.total
        if most_used >= GOOD_USE * budget:
            break
    memory = search.memory(patch, SMALLEST_BATCH, setting)
    return TrainingSize(patch, SMALLEST_BATCH, setting, memory, "the memory: a larger patch would not fit")


def _batch(search: _Search, patch: Triple, checkpointing: str | bool | None) -> TrainingSize:
    """Return the training step with the largest batch of patches that are as large as the median image."""
    data = search.data
    allowed = round(LARGEST_PART * prod(data.median_shape) * data.cases / prod(patch))
    batch = max(SMALLEST_BATCH, allowed)
    takes = search.memory(patch, batch, checkpointing).total
    if takes > search.budget:
        least = search.memory(patch, SMALLEST_BATCH, checkpointing).total
        batch = int(_size_at(search.budget, (SMALLEST_BATCH, least), (batch, takes)))
        while search.memory(patch, batch, checkpointing).total > search.budget:
            batch -= 1
    limit = "the image: a patch is all of it; a larger batch would not fit"
    if batch >= allowed:
        limit = f"the data set: a patch is all of the image, and a batch no more than {LARGEST_PART:.0%} of all voxels"
        limit += f" (but {SMALLEST_BATCH} patches)" if allowed < SMALLEST_BATCH else ""
    return TrainingSize(patch, batch, checkpointing, search.memory(patch, batch, checkpointing), limit)
