"""Fit post-processing rules to the cross-validation of a model, and estimate their effect on held-out folds.

A threshold is chosen for each region. Then a size is chosen for each label, below which its components get the label of
the region that encloses them. Each choice maximises the mean Dice over cases and regions (1 where both masks are empty,
0 where one is); of equal candidates the one that changes least is taken. Test cases are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.metrics.overlap import DICE
from nnunet_glims.evaluation.ranking import signed_rank
from nnunet_glims.evaluation.regions import Regions
from nnunet_glims.evaluation.results import CaseFiles
from nnunet_glims.evaluation.voxels import VoxelCounts, confusion_matrix
from nnunet_glims.geometry import bounding_box, times
from nnunet_glims.images import read_geometry, read_label_map
from nnunet_glims.nnunet.cases import cases_of_model
from nnunet_glims.nnunet.folders import ignored_label, is_background, regions_of
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.postprocessing.case import (
    apply_component_rule,
    components_of,
    mean_by_component,
    paint_regions,
)
from nnunet_glims.postprocessing.probabilities import Heads, read_probabilities
from nnunet_glims.postprocessing.rules import ComponentRule, Fitted, RegionRule, Rules
from nnunet_glims.processes import Progress, processes, quietly

THRESHOLDS = (0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.65, 0.3, 0.7)
SIZES = (0, 10, 25, 50, 75, 100, 150, 200, 300, 500, 1000, 2000)
"""Candidates, ordered by how much they change: the one that changes least comes first."""
CONFIDENT = 0.9
"""Components whose mean probability is this or more are kept, as in the rules of GLIMS' authors."""
_LOWEST = min(THRESHOLDS)
_EMPTY = (slice(0, 1),) * 3


@dataclass(frozen=True)
class Effect:
    """How rules change the Dice of one region in cases that they were not fitted to.

    Attributes:
        before: mean Dice over cases as nnU-Net predicts them.
        after: mean Dice over cases with the rules that were fitted to the other folds.
        p: p value of the two-sided Wilcoxon signed-rank test over cases.
    """

    before: float
    after: float
    p: float


@dataclass(frozen=True)
class _ValidationCase:
    files: CaseFiles
    probabilities: Path | None

    @property
    def fold(self) -> int:
        assert self.files.fold is not None
        return self.files.fold


@dataclass(frozen=True)
class _LoadedCase:
    """The part of a case inside a box, outside of which no candidate predicts a label.

    Attributes:
        truth: true labels (Z, Y, X).
        predicted: nnU-Net's prediction (Z, Y, X), for rules without regions.
        probabilities: name of each region -> its probability (Z, Y, X), for rules with regions.
        missed: (256,) number of voxels of each true label outside of the box.
    """

    truth: np.ndarray
    predicted: np.ndarray | None
    probabilities: Mapping[str, np.ndarray]
    missed: np.ndarray

    def labels(self, rules: Rules) -> np.ndarray:
        """Return the label map before the rules for components are applied."""
        return paint_regions(self.probabilities, rules.regions) if self.predicted is None else self.predicted.copy()


def fit_rules(
    model: Path, truths: Path | None = None, workers: int = 1, progress: Progress = quietly
) -> tuple[Rules, Mapping[str, Effect]]:
    """Fit rules to the validation predictions of all folds.

    Args:
        model: nnU-Net's model folder. Region-based models need their validation probabilities (nnUNetv2_train --npz).
        truths: folder of true label maps; None looks for them as `nnunet-glims evaluate` does.
        workers: number of processes.
        progress: shows how many cases are done.

    Returns:
        The rules fitted to all cases, and for each region the effect of the rules fitted to the other folds.

    Raises:
        UsageError: there are fewer than two folds, or predictions, probabilities or label maps are missing or do not
            belong together.
        ProcessingError: a label map or probabilities are damaged or not finite.
    """
    folder = ModelFolder(model)
    if ignored_label(folder.dataset_json) is not None:
        raise UsageError(f"{model}: its data set has an ignore label: rules cannot be fitted to sparse label maps")
    heads = Heads.of_dataset(folder.dataset_json, f"{model}: dataset.json")
    regions = regions_of(folder.dataset_json)
    start = starting_rules(folder.dataset_json["labels"], heads)
    cases = _cases(cases_of_model(model, truths).files, bool(start.regions), model)
    folds = sorted({case.fold for case in cases})
    if len(folds) < 2:
        raise UsageError(
            f"{model}: only fold {folds[0]} has validation predictions: rules are chosen on the other folds"
        )
    held_out: list[int | None] = [*folds, None]  # None: all cases are used to choose
    chosen = [start] * len(held_out)
    in_fold = np.array([case.fold for case in cases])
    with processes(min(workers, len(cases))) as parallel_map:

        def scores(of_case: Callable[[_ValidationCase], np.ndarray], what: str) -> np.ndarray:
            return np.array(list(progress(parallel_map(of_case, cases), what, len(cases))))

        if start.regions:
            found = scores(partial(_threshold_scores, heads, regions, start), "Thresholds")
            for index, fold in enumerate(held_out):
                best = found[in_fold != fold].mean(0).argmax(1)  # (regions,)
                thresholds = [THRESHOLDS[candidate] for candidate in best]
                changed = [
                    rule.model_copy(update={"threshold": threshold})
                    for rule, threshold in zip(start.regions, thresholds, strict=True)
                ]
                chosen[index] = start.model_copy(update={"regions": changed})
        for step in range(len(start.components)):
            found = scores(partial(_size_scores, heads, regions, tuple(chosen), step), f"Sizes {step + 1}")
            for index, fold in enumerate(held_out):
                best_size = SIZES[int(found[in_fold != fold, index].mean(0).argmax())]
                components = list(chosen[index].components)
                components[step] = components[step].model_copy(update={"smaller_than": best_size})
                chosen[index] = chosen[index].model_copy(update={"components": components})
        of_fold = dict(zip(folds, chosen, strict=False))
        before, after = scores(partial(_before_and_after, heads, regions, start, of_fold), "Effect").swapaxes(0, 1)
    effects = {
        region: Effect(
            float(before[:, i].mean()), float(after[:, i].mean()), signed_rank(after[:, i] - before[:, i])[0]
        )
        for i, region in enumerate(regions)
    }
    summary = {
        region: {"before": round(effect.before, 6), "after": round(effect.after, 6), "p": round(effect.p, 6)}
        for region, effect in effects.items()
    }
    fitted = Fitted(model=folder.path.resolve().name, cases=len(cases), folds=len(folds), dice=summary)
    kept = [rule for rule in chosen[-1].components if rule.smaller_than > 0]
    description = f"Fitted to the cross-validation of {folder.dataset}"
    return chosen[-1].model_copy(update={"components": kept, "description": description, "fitted": fitted}), effects


def starting_rules(labels: Mapping[str, object], heads: Heads) -> Rules:
    """Return rules that change nothing yet, with sizes 0.

    Regions are painted as nnU-Net does. The components of a label get the label of the smallest region that encloses
    the label's own region; without regions, or without an enclosing one, they become background.

    Args:
        labels: the labels of dataset.json.
        heads: what the channels of the probabilities are.
    """
    if heads.exclusive:
        return Rules(components=[ComponentRule(label=label, smaller_than=0) for label in heads.painted if label])
    names = [name for name, of in labels.items() if name != "ignore" and not is_background(name, of)]
    regions = [
        RegionRule(name=name, labels=list(of), paint=paint)
        for name, of, paint in zip(names, heads.labels, heads.painted, strict=True)
    ]
    components = []
    for number, region in reversed(list(enumerate(regions))):
        around = [other.paint for other in regions[:number] if set(region.labels) < set(other.labels)]
        components.append(
            ComponentRule(
                label=region.paint,
                smaller_than=0,
                becomes=around[-1] if around else 0,
                region=region.name,
                mean_probability_below=CONFIDENT,
            )
        )
    return Rules(regions=regions, components=components)


def _cases(files: Sequence[CaseFiles], needs_probabilities: bool, model: Path) -> list[_ValidationCase]:
    cases, problems = [], []
    fold_of: dict[str, int | None] = {}
    for case in files:
        if fold_of.setdefault(case.name, case.fold) != case.fold:
            raise UsageError(
                f"{model}: folds {fold_of[case.name]} and {case.fold} both predicted case {case.name}: rules for one would be "
                "chosen on the other. Remove one of the predictions"
            )
        fold = model / f"fold_{case.fold}"
        if case.prediction is None:
            problems.append(f"fold {case.fold}: no validation prediction of case {case.name}")
            continue
        probabilities = fold / "validation" / f"{case.name}.npz"
        if needs_probabilities and not probabilities.is_file():
            problems.append(f"fold {case.fold}: no validation probabilities of case {case.name}")
        cases.append(_ValidationCase(case, probabilities if needs_probabilities else None))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UsageError(f"{model}: {problems[0]}{more}: make them with nnUNetv2_train … --val --npz")
    return cases


def _load_case(case: _ValidationCase, heads: Heads, rules: Rules) -> _LoadedCase:
    assert case.files.prediction is not None
    true_map = read_label_map(case.files.truth)
    truth = true_map.labels
    predicted, probabilities = None, {}
    if difference := read_geometry(case.files.prediction).difference(true_map.geometry):
        raise UsageError(f"{case.files.prediction}: {difference} as {case.files.truth}")
    if case.probabilities is None:
        labels = read_label_map(case.files.prediction).labels
        box = bounding_box(labels != 0) or _EMPTY
        predicted = labels[box]
    else:
        everything = read_probabilities(case.probabilities)
        if everything.shape[1:] != truth.shape:
            size, expected = times(everything.shape[:0:-1]), times(true_map.geometry.size)
            raise UsageError(f"{case.probabilities}: has {size} voxels, not {expected} as {case.files.truth}")
        possible = [heads.probability(everything, region.labels) > _LOWEST for region in rules.regions]
        box = bounding_box(np.logical_or.reduce(possible)) or _EMPTY
        part = (slice(None), *box)
        inside = everything[part]
        probabilities = {region.name: heads.probability(inside, region.labels) for region in rules.regions}
    seen = truth[box]
    counts = np.bincount(truth.ravel(), minlength=256)
    if unknown := sorted({*np.flatnonzero(counts).tolist()} - {0, *(label for of in heads.labels for label in of)}):
        raise UsageError(f"{case.files.truth}: has labels {', '.join(map(str, unknown))}, which belong to no region")
    missed = counts - np.bincount(seen.ravel(), minlength=256)
    return _LoadedCase(seen, predicted, probabilities, missed)


def _dice_of(confusion: np.ndarray, regions: Regions) -> list[float]:
    """Return the Dice of each region from a confusion matrix."""
    return [DICE.of_voxels(VoxelCounts.of_region(confusion, labels)) for labels in regions.values()]


def _confusion(loaded: _LoadedCase, labels: np.ndarray, regions: Regions) -> np.ndarray:
    size = 1 + max(int(np.flatnonzero(loaded.missed).max(initial=0)), int(loaded.truth.max()), int(labels.max()))
    size = max(size, 1 + max(label for of in regions.values() for label in of))
    confusion = confusion_matrix(loaded.truth, labels, size)
    confusion[:, 0] += loaded.missed[:size]
    return confusion


def _threshold_scores(heads: Heads, regions: Regions, rules: Rules, case: _ValidationCase) -> np.ndarray:
    """Return the Dice of each region with each threshold, (regions, thresholds)."""
    loaded = _load_case(case, heads, rules)
    scores = np.empty((len(rules.regions), len(THRESHOLDS)))
    for row, region in enumerate(rules.regions):
        true = np.isin(loaded.truth, region.labels)
        missed = int(loaded.missed[region.labels].sum())
        values = loaded.probabilities[region.name]
        for column, threshold in enumerate(THRESHOLDS):
            predicted = values > threshold
            tp = int(np.count_nonzero(predicted & true))
            fp, fn = int(predicted.sum()) - tp, int(true.sum()) - tp + missed
            scores[row, column] = DICE.of_voxels(VoxelCounts(tp, fp, fn, 0))
    return scores


def _size_scores(
    heads: Heads, regions: Regions, candidates: Sequence[Rules], step: int, case: _ValidationCase
) -> np.ndarray:
    """Return the mean Dice over regions for each size of one rule, (candidates, sizes), with the earlier rules applied."""
    loaded = _load_case(case, heads, candidates[0])
    known: dict[str, np.ndarray] = {}  # most folds choose the same rules
    for rules in candidates:
        if rules.model_dump_json() not in known:
            known[rules.model_dump_json()] = _dice_by_size(loaded, rules, step, regions)
    return np.array([known[rules.model_dump_json()] for rules in candidates])


def _dice_by_size(loaded: _LoadedCase, rules: Rules, step: int, regions: Regions) -> np.ndarray:
    labels = loaded.labels(rules)
    for earlier in rules.components[:step]:
        apply_component_rule(labels, earlier, loaded.probabilities)
    rule = rules.components[step]
    confusion = _confusion(loaded, labels, regions)
    mask = labels == rule.label
    components, sizes = components_of(mask)
    numbers, true = components[mask], loaded.truth[mask]
    unsure = np.ones(len(sizes), bool)
    if rule.region is not None and rule.mean_probability_below is not None:
        values = loaded.probabilities[rule.region][mask]
        unsure = mean_by_component(numbers, values, len(sizes)) < rule.mean_probability_below
    # Moving a component to another label moves its voxels between two columns of the matrix.
    found = []
    for size in SIZES:
        moved = (sizes < size) & unsure
        counts = np.bincount(true[moved[numbers]], minlength=len(confusion))
        changed = confusion.copy()
        changed[:, rule.label] -= counts
        changed[:, rule.becomes] += counts
        found.append(float(np.mean(_dice_of(changed, regions))))
    return np.array(found)


def _before_and_after(
    heads: Heads, regions: Regions, start: Rules, of_fold: Mapping[int, Rules], case: _ValidationCase
) -> np.ndarray:
    """Return the Dice of each region as nnU-Net predicted the case, and with the rules of its fold, (2, regions)."""
    loaded = _load_case(case, heads, start)
    found = []
    for rules in (start, of_fold[case.fold]):
        labels = loaded.labels(rules)
        for rule in rules.components:
            apply_component_rule(labels, rule, loaded.probabilities)
        found.append(_dice_of(_confusion(loaded, labels, regions), regions))
    return np.array(found)
