"""Statistics of one metric over cases or patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES, _RESAMPLES_AT_ONCE = 9999, 1000
SEED = 2026
FEWEST = 5
"""Fewest values that an interval, a test or a claim that one entry is the best may be made from."""


def describe(values: Sequence[float] | np.ndarray) -> dict[str, float | int | list[float] | None]:
    """Return number of values, mean, standard deviation (n - 1), median, quartiles, and 95 % interval of the mean.

    Values that are not finite are left out and counted as "undefined". A statistic that needs more values is None.
    """
    given = np.asarray(values, float)
    known = given[np.isfinite(given)]
    described: dict[str, float | int | list[float] | None] = {"n": len(known), "undefined": len(given) - len(known)}
    if not len(known):
        return described | dict.fromkeys(("mean", "sd", "median", "q1", "q3", "ci95"))
    q1, median, q3 = np.percentile(known, (25, 50, 75)).tolist()
    return described | {
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if len(known) > 1 else None,
        "median": median,
        "q1": q1,
        "q3": q3,
        "ci95": bootstrap_interval(known),
    }


def bootstrap_interval(values: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of the mean (Efron 1979), from fixed resamples; None for too few values."""
    if len(values) < FEWEST:
        return None
    rng = np.random.default_rng(SEED)
    batches = (_RESAMPLES_AT_ONCE,) * (RESAMPLES // _RESAMPLES_AT_ONCE) + (RESAMPLES % _RESAMPLES_AT_ONCE,)
    means = [values[rng.integers(0, len(values), (count, len(values)))].mean(1) for count in batches]
    return np.percentile(np.concatenate(means), (2.5, 97.5)).tolist()
