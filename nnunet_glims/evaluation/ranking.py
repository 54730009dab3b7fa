"""Which of several entries is better, on the same cases: paired tests, ranks case by case, critical differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.statistics import SEED

PERMUTATIONS, _AT_ONCE = 100_000, 10_000
"""Random swaps of a test. Holm's correction over 40 entries asks for p below 6·10⁻⁵."""


@dataclass(frozen=True)
class Comparison:
    """Two entries on the same cases, in one metric of one region.

    Attributes:
        difference: mean of first minus second.
        p: of the two-sided Wilcoxon signed-rank test (1945); differences of zero are left out.
        p_holm: adjusted by Holm's method (1979) over all pairs of entries and all regions of the metric.
        effect: matched-pairs rank-biserial correlation (Kerby 2014): 1 where the first is larger in every case, -1 where
            the second is, 0 where neither tends to be.
        cases: with a value of both.
    """

    metric: str
    region: str
    first: str
    second: str
    difference: float
    p: float
    p_holm: float
    effect: float
    cases: int


@dataclass(frozen=True)
class Ranking:
    """Ranks as in BraTS: entries are ranked for each case, region and metric, and their ranks averaged.

    Attributes:
        by_case: (case, entry) mean rank over regions and metrics; 1 is the best. A value that is not there ranks last.
        placed: (case, entry) place of the entry in the case by that mean, from 1; what Friedman's and Nemenyi's tests are for.
        p: (entry, entry) of a paired permutation test of the mean rank, adjusted by Holm's method over all pairs.
        friedman_p: of Friedman's test of the places; None for fewer than three entries or two cases.
        critical_difference: of Nemenyi's test at 0.05 (Demšar 2006): mean places that differ by less do not differ
            significantly. None for fewer than two cases.
    """

    by_case: pd.DataFrame
    placed: pd.DataFrame
    p: pd.DataFrame
    friedman_p: float | None
    critical_difference: float | None

    @property
    def mean(self) -> pd.Series:
        """Entry -> mean rank, the best first."""
        return self.by_case.mean().sort_values(kind="stable")


def wide(table: pd.DataFrame, region: str, metric: str) -> pd.DataFrame:
    """(case, entry) values of one metric.

    Args:
        table: columns entry, case, region, and the metrics. A case that an entry has twice counts with its mean.
    """
    rows = table[table["region"] == region]
    entries = list(dict.fromkeys(table["entry"]))
    return rows.pivot_table(metric, "case", "entry", "mean", dropna=False, sort=False).reindex(columns=entries)


def compare(table: pd.DataFrame, metric: str) -> list[Comparison]:
    """All pairs of entries in all regions."""
    found = []
    for region in dict.fromkeys(table["region"]):
        values = wide(table, region, metric)
        for first, second in combinations(values.columns, 2):
            pair = values[[first, second]].dropna()
            differences = (pair[first] - pair[second]).round(9).to_numpy(float)
            found.append((region, first, second, differences, *signed_rank(differences)))
    adjusted = holm([p for *_, p, _ in found])
    return [
        Comparison(
            metric,
            region,
            first,
            second,
            float(differences.mean()) if len(differences) else float("nan"),
            p,
            p_holm,
            effect,
            len(differences),
        )
        for (region, first, second, differences, p, effect), p_holm in zip(found, adjusted, strict=True)
    ]


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """p and rank-biserial correlation."""
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0, 0.0
    ranks = stats.rankdata(abs(nonzero))
    effect = float(ranks @ np.sign(nonzero) / ranks.sum())
    return float(stats.wilcoxon(nonzero).pvalue), effect


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted by Holm's step-down method."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def rank(table: pd.DataFrame, metrics: Sequence[Metric]) -> Ranking:
    """Rank entries case by case, in all regions and these metrics, of which it must be known which direction is better."""
    ranks = []
    for region in dict.fromkeys(table["region"]):
        for metric in metrics:
            values = wide(table, region, metric.name)
            # To 9 digits: values that differ by rounding only are equal.
            rounded = values.round(9)
            ranks.append(rounded.rank(axis=1, ascending=not metric.higher_is_better, na_option="bottom"))
    by_case = sum(ranks[1:], ranks[0]) / len(ranks)
    entries = list(by_case.columns)
    pairs = list(combinations(entries, 2))
    p = pd.DataFrame(np.ones((len(entries),) * 2), entries, entries)
    if pairs:
        differences = np.stack([by_case[first] - by_case[second] for first, second in pairs], 1)
        for (first, second), adjusted in zip(pairs, holm(permutation_p(differences).tolist()), strict=True):
            p.loc[first, second] = p.loc[second, first] = adjusted
    placed = by_case.round(9).rank(axis=1)
    friedman = None
    if len(entries) > 2 and len(by_case) > 1:
        differ = placed.nunique(axis=1).max() > 1
        friedman = float(stats.friedmanchisquare(*placed.to_numpy().T).pvalue) if differ else 1.0
    return Ranking(by_case, placed, p, friedman, _critical_difference(len(entries), len(by_case)))


def permutation_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p of paired permutation tests: whether a mean difference is larger than if any pair could be swapped.

    Args:
        differences: (cases, tests).

    Returns:
        (tests,), exact where there are few cases, else by random swaps, the same ones in all tests.
    """
    cases = len(differences)
    observed = abs(differences.sum(0)) - 1e-9
    extreme = np.zeros(differences.shape[1])
    if 2**cases <= PERMUTATIONS:
        swaps = np.arange(2**cases)[:, None] >> np.arange(cases) & 1
        extreme += (abs((1 - 2 * swaps) @ differences) >= observed).sum(0)
        return extreme / 2**cases
    rng = np.random.default_rng(SEED)
    for _ in range(0, PERMUTATIONS, _AT_ONCE):
        signs = rng.integers(0, 2, (_AT_ONCE, cases), dtype=np.int8) * 2.0 - 1
        extreme += (abs(signs @ differences) >= observed).sum(0)
    return (extreme + 1) / (PERMUTATIONS + 1)


def _critical_difference(entries: int, cases: int) -> float | None:
    if entries < 2 or cases < 2:
        return None
    q = stats.studentized_range.ppf(0.95, entries, np.inf) / sqrt(2)
    return float(q * sqrt(entries * (entries + 1) / (6 * cases)))
