"""One case: probabilities and rules to a label map. Arrays are (Z, Y, X)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cc3d
import numpy as np

from nnunet_glims.geometry import bounding_box
from nnunet_glims.postprocessing.probabilities import Heads, mean_probabilities
from nnunet_glims.postprocessing.rules import ComponentRule, HoleRule, RegionRule, Rules


def postprocessed_label_map(models: Sequence[np.ndarray], heads: Heads, rules: Rules) -> np.ndarray:
    """Labels, uint8, from the probabilities (C, Z, Y, X) of one or several models, averaged in logit space.

    Raises:
        UsageError: the rules have a region for which the models have no probability.
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
    """Labels, uint8: the regions one over the other, each where its probability, by name, is above its threshold."""
    labels = np.zeros(probabilities[regions[0].name].shape, np.uint8)
    for region in regions:
        labels[probabilities[region.name] > region.threshold] = region.paint
    return labels


def _candidates(models: Sequence[np.ndarray], heads: Heads, regions: Sequence[RegionRule]) -> tuple[slice, ...] | None:
    """Around all voxels that can get a label; None where there are none.

    A mean of logits is above a threshold only where some model is. This does not hold for sums of a softmax' means.
    """
    if heads.exclusive and len(models) > 1:
        return slice(None), slice(None), slice(None)
    possible = np.zeros(models[0].shape[1:], bool)
    for model in models:
        for region in regions:
            possible |= heads.probability(model, region.labels) > region.threshold
    return bounding_box(possible)


def apply_rules(labels: np.ndarray, rules: Rules, probabilities: Mapping[str, np.ndarray] | None = None) -> None:
    """Change labels in place by the rules for components and holes.

    Args:
        labels: a label map, or the part of it that has labels.
        rules: whose regions were painted before.
        probabilities: of the regions by name, on the same voxels; needed where rules ask for it.
    """
    for rule in rules.components:
        apply_component_rule(labels, rule, probabilities)
    for hole in rules.holes:
        _fill_holes(labels, hole)


def apply_component_rule(
    labels: np.ndarray, rule: ComponentRule, probabilities: Mapping[str, np.ndarray] | None
) -> None:
    """Change labels in place by one rule."""
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
    """26-connected components, numbered from 1, and the voxels of each number (0: outside)."""
    components = cc3d.connected_components(mask, connectivity=26)
    return components, cc3d.statistics(components, no_slice_conversion=True)["voxel_counts"].astype(np.int64)


def mean_by_component(components: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """(count,) mean of the values of each component; NaN where it has no voxel."""
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
