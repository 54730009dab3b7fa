"""Compare several entries on the same patients: paired tests, ranks patient by patient, critical differences.

All functions take a table of patient means, as `nnunet_glims.evaluation.averages.patient_means` returns it. Where the patients
are not known, each case is a patient of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan, sqrt

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_glims.evaluation.averages import values_by_entry
from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.statistics import FEWEST, SEED

SIGNIFICANT = 0.05
MOST_EXACT = 50
"""Largest number of patients for which the p value of a signed-rank test is exact."""

PERMUTATIONS, _AT_ONCE = 100_000, 10_000
"""Random swaps of a test, and how many are made at once. Holm's correction over 40 entries asks for p below 6·10⁻⁵."""


@dataclass(frozen=True)
class PairedTest:
    """The paired test of two entries on the same patients, in one metric of one region.

    Attributes:
        difference: mean over patients of the first entry's value minus the second's.
        p: p value of the two-sided Wilcoxon signed-rank test (1945); differences of zero are left out. NaN for fewer than
            `FEWEST` patients, which are not tested.
        p_holm: p value adjusted by Holm's method (1979) over all tests of the metric: those of all pairs of entries in all
            regions.
        effect: matched-pairs rank-biserial correlation (Kerby 2014): 1 if the first is larger for every patient, -1 if the
            second is, 0 if neither tends to be.
        patients: number of patients with a value for both entries.
    """

    metric: str
    region: str
    first: str
    second: str
    difference: float
    p: float
    p_holm: float
    effect: float
    patients: int


@dataclass(frozen=True)
class Ranking:
    """Ranks as in BraTS: entries are ranked for each patient, region and metric, and their ranks averaged.

    Attributes:
        by_patient: (patient, entry) mean rank over regions and metrics; 1 is the best. A value that is not defined ranks
            last.
        places: (patient, entry) place of the entry by that mean, from 1. Friedman's and Nemenyi's tests use these places.
        p: (entry, entry) p values of paired permutation tests of the mean rank, adjusted by Holm's method over all pairs. NaN
            for fewer than `FEWEST` patients.
        smallest_p: the smallest adjusted p value that so many patients allow.
        friedman_p: p value of Friedman's test of the places; None for fewer than three entries, and where the smallest p
            value of the pairs is not significant: nothing is claimed of all entries that no pair could show.
        critical_difference: critical difference of Nemenyi's test at 0.05 (Demšar 2006): mean places that differ by less do
            not differ significantly. None as for Friedman's test, except that two entries have one.
    """

    by_patient: pd.DataFrame
    places: pd.DataFrame
    p: pd.DataFrame
    smallest_p: float
    friedman_p: float | None
    critical_difference: float | None

    @property
    def mean(self) -> pd.Series:
        """Entry -> mean rank, the best first."""
        return self.by_patient.mean().sort_values(kind="stable")


def paired_tests(table: pd.DataFrame, metric: str) -> list[PairedTest]:
    """Return the test of every pair of entries in every region, for one metric."""
    found = []
    for region in dict.fromkeys(table["region"]):
        values = values_by_entry(table, region, metric)
        for first, second in combinations(values.columns, 2):
            pair = values[[first, second]].dropna()
            differences = (pair[first] - pair[second]).round(9).to_numpy(float)
            p, effect = signed_rank(differences)
            found.append((region, first, second, differences, p if len(differences) >= FEWEST else nan, effect))
    adjusted = holm([p for *_, p, _ in found])
    return [
        PairedTest(
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
    """Return the p value of the Wilcoxon signed-rank test and the rank-biserial correlation of paired differences.

    The p value is exact, also where differences are equal, for up to `MOST_EXACT` differences other than 0.
    """
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0, 0.0
    ranks = stats.rankdata(abs(nonzero))
    effect = float(ranks @ np.sign(nonzero) / ranks.sum())
    if len(nonzero) > MOST_EXACT:
        return float(stats.wilcoxon(nonzero, method="asymptotic").pvalue), effect
    doubled = (2 * ranks).round().astype(int)  # equal differences share a rank that may end in .5
    ways = np.zeros(doubled.sum() + 1)  # sum of the ranks of positive differences -> part of all signs that have it
    ways[0] = 1
    for one in doubled:
        ways[one:] += ways[:-one].copy()
        ways /= 2
    positive = doubled[nonzero > 0].sum()
    return min(1.0, 2 * float(min(ways[: positive + 1].sum(), ways[positive:].sum()))), effect


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down method; NaN stays NaN and is no test."""
    given = np.asarray(p, float)
    order = np.argsort(given, kind="stable")[: np.isfinite(given).sum()]  # NaN is sorted last
    adjusted = np.full(len(given), nan)
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def smallest_p(patients: int, tests: int = 1) -> float:
    """Return the smallest p value that an exact paired test can have, adjusted by Holm's method over a number of tests.

    Of the 2ⁿ ways in which the signs of n differences may fall, two are the most extreme: all positive and all negative.
    """
    return min(1.0, tests * 2.0 ** (1 - patients))


def rank(table: pd.DataFrame, metrics: Sequence[Metric]) -> Ranking:
    """Rank entries patient by patient, in all regions and by these metrics, for each of which larger or smaller is better."""
    ranks = []
    for region in dict.fromkeys(table["region"]):
        for metric in metrics:
            values = values_by_entry(table, region, metric.name)
            # Values are compared to 9 digits, so that those that differ by rounding only are equal.
            rounded = values.round(9)
            ranks.append(rounded.rank(axis=1, ascending=not metric.higher_is_better, na_option="bottom"))
    by_patient = sum(ranks[1:], ranks[0]) / len(ranks)
    entries = list(by_patient.columns)
    pairs = list(combinations(entries, 2))
    p = pd.DataFrame(np.full((len(entries),) * 2, nan), entries, entries)
    if pairs and len(by_patient) >= FEWEST:
        differences = np.stack([by_patient[first] - by_patient[second] for first, second in pairs], 1)
        for (first, second), adjusted in zip(pairs, holm(permutation_p(differences).tolist()), strict=True):
            p.loc[first, second] = p.loc[second, first] = adjusted
    places = by_patient.round(9).rank(axis=1)
    smallest = smallest_p(len(by_patient), len(pairs))
    friedman = critical_difference = None
    if len(by_patient) >= FEWEST and smallest < SIGNIFICANT:
        critical_difference = _critical_difference(len(entries), len(by_patient))
        if len(entries) > 2:
            differ = places.nunique(axis=1).max() > 1
            friedman = float(stats.friedmanchisquare(*places.to_numpy().T).pvalue) if differ else 1.0
    return Ranking(by_patient, places, p, smallest, friedman, critical_difference)


def permutation_p(differences: np.ndarray) -> np.ndarray:
    """Return two-sided p values of paired permutation tests, in which the two values of any pair may be swapped.

    Args:
        differences: (patients, tests).

    Returns:
        (tests,): exact values for few patients, else estimates from random swaps, which are the same in all tests.
    """
    patients = len(differences)
    observed = abs(differences.sum(0)) - 1e-9
    extreme = np.zeros(differences.shape[1])
    if 2**patients <= PERMUTATIONS:
        swaps = np.arange(2**patients)[:, None] >> np.arange(patients) & 1
        extreme += (abs((1 - 2 * swaps) @ differences) >= observed).sum(0)
        return extreme / 2**patients
    rng = np.random.default_rng(SEED)
    for _ in range(0, PERMUTATIONS, _AT_ONCE):
        signs = rng.integers(0, 2, (_AT_ONCE, patients), dtype=np.int8) * 2.0 - 1
        extreme += (abs(signs @ differences) >= observed).sum(0)
    return (extreme + 1) / (PERMUTATIONS + 1)


def _critical_difference(entries: int, patients: int) -> float | None:
    if entries < 2:
        return None
    q = stats.studentized_range.ppf(0.95, entries, np.inf) / sqrt(2)
    return float(q * sqrt(entries * (entries + 1) / (6 * patients)))
