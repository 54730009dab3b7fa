"""Statistics against SciPy, published examples and values worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_glims.evaluation.metrics import metric_named
from nnunet_glims.evaluation.ranking import holm, paired_tests, permutation_p, rank
from nnunet_glims.evaluation.statistics import describe

DICE, HD95 = metric_named("dice"), metric_named("hd95")


def table(region="a", **entries):
    """A table of Dice, and of HD95 that says the same: 100 · (1 - Dice)."""
    rows = [
        {"entry": name, "patient": f"patient_{number}", "region": region, "dice": value, "hd95": 100 * (1 - value)}
        for name, values in entries.items()
        for number, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_describe():
    described = describe([1, 2, 3, 4, float("nan")])
    assert (described["n"], described["undefined"]) == (4, 1)
    assert (described["mean"], described["median"], described["q1"], described["q3"]) == (2.5, 2.5, 1.75, 3.25)
    assert described["sd"] == pytest.approx(np.sqrt(5 / 3))


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [describe(rng.normal(0.8, 0.1, 40))["ci95"] for _ in range(60)]
    covered = sum(low <= 0.8 <= high for low, high in intervals)
    assert 51 <= covered <= 60
    width = np.mean([high - low for low, high in intervals])
    assert width == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(40), rel=0.1)


def test_few_values():
    assert describe([]) | {"mean": None, "ci95": None} == describe([])
    assert describe([0.5])["mean"] == 0.5
    assert describe([0.5])["sd"] is None and describe([0.5])["ci95"] is None


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


def test_pairs_by_wilcoxon():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.7, 0.9, 20)
    second = first + rng.normal(0.03, 0.02, 20)
    (pair,) = paired_tests(table(first=first, second=second), "dice")
    assert pair.p == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert pair.difference == pytest.approx((first - second).mean())
    ranks = stats.rankdata(abs(first - second))
    assert pair.effect == pytest.approx((ranks[first > second].sum() - ranks[first < second].sum()) / ranks.sum())
    assert pair.patients == 20


def test_pairs_without_a_difference_or_without_a_value():
    same = [0.5, 0.6, 0.7, 0.8, 0.9]
    (pair,) = paired_tests(table(first=same, second=same), "dice")
    assert (pair.p, pair.effect) == (1, 0)
    (pair,) = paired_tests(table(first=[0.5, 0.6, float("nan")], second=[0.4, 0.5, 0.6]), "dice")
    assert (pair.patients, pair.effect) == (2, 1)


def test_holm_counts_all_pairs_and_regions():
    rng = np.random.default_rng(0)
    entries = {name: rng.uniform(0.7, 0.9, 12) for name in "xyz"}
    both = pd.concat([table("a", **entries), table("b", **entries)])
    pairs = paired_tests(both, "dice")
    assert len(pairs) == 6
    assert [pair.p_holm for pair in pairs] == pytest.approx(holm([pair.p for pair in pairs]))


def test_ranks():
    ranking = rank(table(good=[0.9, 0.8, 0.9], fair=[0.8, 0.8, 0.7], poor=[0.1, 0.2, 0.3]), [DICE, HD95])
    assert dict(ranking.mean) == {"good": (1 + 1.5 + 1) / 3, "fair": (2 + 1.5 + 2) / 3, "poor": 3}
    assert list(ranking.mean.index) == ["good", "fair", "poor"]


def test_a_missing_value_ranks_last():
    ranking = rank(table(one=[0.2, 0.2], two=[0.1, float("nan")]), [DICE])
    assert dict(ranking.mean) == {"one": 1, "two": 2}


def test_permutation_p_is_exact_for_few_cases():
    # Of the 2^5 ways to swap, only none and all are as extreme.
    ranking = rank(table(good=[0.9] * 5, poor=[0.1] * 5), [DICE])
    assert ranking.p.loc["good", "poor"] == pytest.approx(2 / 32)
    assert rank(table(same=[0.9] * 5, again=[0.9] * 5), [DICE]).p.loc["same", "again"] == 1


def test_permutation_p_of_many_cases_is_near_that_of_scipy():
    rng = np.random.default_rng(3)
    differences = rng.normal(0.2, 1, (40, 3))
    for ours, column in zip(permutation_p(differences), differences.T):
        test = stats.permutation_test(
            (column, np.zeros(40)),
            lambda a, b: np.mean(a - b),
            permutation_type="samples",
            n_resamples=9999,
            random_state=rng,
        )
        assert ours == pytest.approx(test.pvalue, abs=0.015)


def test_a_clear_difference_is_significant_among_forty_entries():
    differences = np.ones((100, 40 * 39 // 2))
    assert max(holm(permutation_p(differences).tolist())) < 0.05


def test_friedman_and_the_critical_difference():
    # Demšar 2006, section 3.2.2: four algorithms on 14 data sets have a critical difference of 1.25
    entries = {name: np.random.default_rng(number).uniform(0, 1, 14) for number, name in enumerate("abcd")}
    ranking = rank(table(**entries), [DICE])
    assert ranking.critical_difference == pytest.approx(1.25, abs=0.005)
    assert ranking.friedman_p == pytest.approx(stats.friedmanchisquare(*entries.values()).pvalue)
