"""Confusion matrices of evaluated cases: rows are true labels, columns predicted ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.records import Results
from nnunet_glims.evaluation.regions import short
from nnunet_glims.releases import brats
from nnunet_glims.validation import nearest


@dataclass(frozen=True)
class Confusion:
    """The row-normalised confusion matrices of one model, over cases.

    Attributes:
        mean: (labels, labels) mean over cases of the row-normalised matrices; NaN in rows of labels that no case has.
        sd: their standard deviation (n - 1); NaN where fewer than two cases have the label.
        cases: (labels,) number of cases that have each true label.
    """

    mean: np.ndarray
    sd: np.ndarray
    cases: np.ndarray


def row_normalised(counts: np.ndarray) -> np.ndarray:
    """Divide (labels, labels) voxels by the sums of their rows; empty rows become NaN."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(1, keepdims=True)


def counts_of(line: Mapping[str, Any], size: int) -> np.ndarray:
    """Return the confusion matrix, (size, size) voxels, of a line of cases.jsonl, whose own matrix may be smaller."""
    counts = np.asarray(line["confusion"])
    padded = np.zeros((size, size), np.int64)
    padded[: len(counts), : len(counts)] = counts
    return padded


def over_cases(lines: Sequence[Mapping[str, Any]], size: int, only_with: Collection[int] = ()) -> Confusion:
    """Return mean and standard deviation over cases; a case counts in the rows of those labels that its truth has.

    Args:
        lines: lines of cases.jsonl. A case with several lines, one for each seed, counts once, with their mean.
        size: number of labels, with the background.
        only_with: labels; cases whose truth has none of them are left out. If empty, all cases count.
    """
    of_case: dict[str, np.ndarray] = {}
    for line in lines:
        # All seeds have the same truth, hence the same row sums: normalising the sum of counts gives the mean of the parts.
        of_case[line["case"]] = of_case.get(line["case"], 0) + counts_of(line, size)
    matrices = list(of_case.values())
    if only_with:
        matrices = [counts for counts in matrices if counts[sorted(only_with)].any()]
    parts = np.array([row_normalised(counts) for counts in matrices]).reshape(-1, size, size)
    there = np.isfinite(parts[:, :, 0]).sum(0) if len(parts) else np.zeros(size, int)
    filled = np.nan_to_num(parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / there[:, None]
        squares = np.where(np.isnan(parts), 0, (parts - mean) ** 2).sum(0)
        sd = np.sqrt(squares / np.where(there > 1, there - 1, np.nan)[:, None])
    return Confusion(mean, sd, there)


def label_names(evaluations: Sequence[Results]) -> list[str]:
    """Return the label names: the standard name, else the region with this label alone, else "label" and the number."""
    size = max((len(line["confusion"]) for results in evaluations for line in results.cases), default=1)
    names = ["background", *(f"label {label}" for label in range(1, size))]
    regions = {region: tuple(labels) for region, labels in evaluations[0].summary["regions"].items()}
    if regions == dict(brats.REGIONS):
        names[1:4] = list(brats.LABEL_NAMES.values())[: size - 1]
        return names
    for region, labels in regions.items():
        if len(labels) == 1 and labels[0] < size:
            names[labels[0]] = short(region)
    return names


def region_labels(evaluations: Mapping[str, Results], region: str) -> tuple[int, ...]:
    """Return the labels of a region, by its name or abbreviation.

    Raises:
        UsageError: an evaluation does not have the region, or it has other labels in another evaluation.
    """
    found: set[tuple[int, ...]] = set()
    for entry, results in evaluations.items():
        regions = results.summary["regions"]
        names = [name for name in regions if region in (name, short(name))]
        if not names:
            raise UsageError(f"{entry}: region {region!r} was not evaluated: {nearest(region, list(regions))}")
        found.add(tuple(regions[names[0]]))
    if len(found) > 1:
        shown = " and ".join(str(list(labels)) for labels in sorted(found))
        raise UsageError(f"region {region!r} has labels {shown} in different evaluations: evaluate with one --regions")
    return found.pop()


def table(confusions: Mapping[str, Confusion], names: Sequence[str]) -> pd.DataFrame:
    """Return the matrices as a table with a row for each entry, true label and predicted label."""
    return pd.DataFrame(
        [
            {
                "entry": entry,
                "true": names[row],
                "predicted": names[column],
                "mean": confusion.mean[row, column],
                "sd": confusion.sd[row, column],
                "cases": int(confusion.cases[row]),
            }
            for entry, confusion in confusions.items()
            for row, column in np.ndindex(confusion.mean.shape)
        ]
    )
