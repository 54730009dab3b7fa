"""Statistics of one metric over cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 9999
SEED = 2026


def describe(values: Sequence[float] | np.ndarray) -> dict[str, float | int | list[float] | None]:
    """Mean, standard deviation (n - 1), median, quartiles, 95 % interval of the mean.

    Values that are not finite are left out and counted as "undefined". None where there are too few values.
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
    """95 % percentile bootstrap interval of the mean over cases (Efron 1979), always by the same resamples."""
    if len(values) < 2:
        return None
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(SEED), vectorized=True
    ).confidence_interval
    return [float(interval.low), float(interval.high)]
