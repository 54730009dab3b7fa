"""Apply rules to the probabilities or to the label map of one case. Arrays are (Z, Y, X)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cc3d
import numpy as np

from nnunet_glims.geometry import bounding_box
from nnunet_glims.postprocessing.probabilities import Heads, mean_probabilities
from nnunet_glims.postprocessing.rules import ComponentRule, HoleRule, RegionRule, Rules


def postprocessed_label_map(models: Sequence[np.ndarray], heads: Heads, rules: Rules) -> np.ndarray:
    """Return the label map (Z, Y, X), uint8, that rules make of the probabilities of one or several models.

    Args:
        models: probabilities (C, Z, Y, X) of each model. Several models are averaged in logit space.
        heads: what the channels of the probabilities are.
        rules: the rules to apply.

    Raises:
        UsageError: the rules name a region for which the models have no probability.
    """
    labels = np.zeros(models[0].shape[1:], np.uint8)
    if not rules.regions and heads.exclusive:
        averaged = mean_probabilities(models, True)
        labels[:] = np.array(heads.painted, np.uint8)[averaged.argmax(0)]
        apply_rules(labels, rules)
        return labels
    regions = rules.regions or [
        RegionRule(name=str(channel), labels=list(of), paint=paint)
        for channel, (of, paint) in enumerate(zip(heads.labels, heads.painted, strict=True))
    ]
    box = _candidates(models, heads, regions)
    if box is None:
        return labels
    part = (slice(None), *box)
    probabilities = mean_probabilities([model[part] for model in models], heads.exclusive)
    by_name = {region.name: heads.probability(probabilities, region.labels) for region in regions}
    inside = paint_regions(by_name, regions)
    apply_rules(inside, rules, by_name)
    labels[box] = inside
    return labels


def paint_regions(probabilities: Mapping[str, np.ndarray], regions: Sequence[RegionRule]) -> np.ndarray:
    """Return a label map, uint8, into which the regions are painted in their order, later ones over earlier ones.

    Args:
        probabilities: name of a region -> its probability (Z, Y, X).
        regions: each is painted where its probability is above its threshold.
    """
    labels = np.zeros(probabilities[regions[0].name].shape, np.uint8)
    for region in regions:
        labels[probabilities[region.name] > region.threshold] = region.paint
    return labels


def _candidates(models: Sequence[np.ndarray], heads: Heads, regions: Sequence[RegionRule]) -> tuple[slice, ...] | None:
    """Return the bounding box of all voxels that can get a label; None where there are none.

    The mean of several models' logits is above a threshold only where the logit of at least one model is. This does not
    hold for a region whose probability is the sum of softmax channels, so the box is then the whole volume.
    """
    if heads.exclusive and len(models) > 1:
        return slice(None), slice(None), slice(None)
    possible = np.zeros(models[0].shape[1:], bool)
    for model in models:
        for region in regions:
            possible |= heads.probability(model, region.labels) > region.threshold
    return bounding_box(possible)


def apply_rules(labels: np.ndarray, rules: Rules, probabilities: Mapping[str, np.ndarray] | None = None) -> None:
    """Apply the rules for components and holes to a label map in place.

    Args:
        labels: a label map, or a part of it that contains all its labels.
        rules: the rules. Their regions are not painted here.
        probabilities: name of a region -> its probability on the same voxels. Rules with `mean_probability_below` need
            it.
    """
    for rule in rules.components:
        apply_component_rule(labels, rule, probabilities)
    for hole in rules.holes:
        _fill_holes(labels, hole)


def apply_component_rule(
    labels: np.ndarray, rule: ComponentRule, probabilities: Mapping[str, np.ndarray] | None
) -> None:
    """Apply one rule to a label map in place; the arguments are those of `apply_rules`."""
    box = bounding_box(labels == rule.label)
    if box is None or rule.smaller_than <= 1:
        return
    inside = labels[box]
    components, sizes = components_of(inside == rule.label)
    changed = sizes < rule.smaller_than
    changed[0] = False
    if changed.any() and rule.region is not None and rule.mean_probability_below is not None:
        assert probabilities is not None
        small = changed[components]
        means = mean_by_component(components[small], probabilities[rule.region][box][small], len(sizes))
        changed &= means < rule.mean_probability_below
    if changed.any():
        inside[changed[components]] = rule.becomes


def components_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 26-connected components of a mask.

    Returns:
        The number of the component that each voxel belongs to, from 1 (0 outside of the mask), and the voxel count of
        each number.
    """
    components = cc3d.connected_components(mask, connectivity=26)
    return components, cc3d.statistics(components, no_slice_conversion=True)["voxel_counts"].astype(np.int64)


def mean_by_component(components: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Return the mean value of each component, (count,); NaN for a number that no voxel has.

    Args:
        components: the number of each voxel's component.
        values: one value per voxel, of the same shape.
        count: number of components, 0 included.
    """
    voxels = np.bincount(components, minlength=count)
    total = np.bincount(components, values, minlength=count)
    with np.errstate(invalid="ignore"):
        return total / voxels


def _fill_holes(labels: np.ndarray, rule: HoleRule) -> None:
    box = bounding_box(labels == rule.label)
    if box is None:
        return
    inside = labels[box]
    outside = np.pad(inside != rule.label, 1, constant_values=True)
    components = cc3d.connected_components(outside, connectivity=6)
    middle = components[1:-1, 1:-1, 1:-1]
    inside[(middle != 0) & (middle != components[0, 0, 0])] = rule.becomes
