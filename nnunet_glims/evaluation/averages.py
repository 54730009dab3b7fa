"""Average metrics over the seeds of an entry, then over the cases of a patient.

A table of results has a row for each entry, seed, case and region, with a column for each metric. Values that are not defined
(NaN) are left out of each mean; a mean of no defined value is not defined either.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

_NO_METRICS = ("seed", "fold")


def case_means(table: pd.DataFrame) -> pd.DataFrame:
    """Average each case over the seeds of its entry.

    Args:
        table: columns entry, seed, case, region, and the metrics; a column fold is left out. A case that several folds of
            one seed predicted counts in its seed with the mean over these folds.

    Returns:
        A row for each entry, case and region: columns entry, case, region, and the metrics.
    """
    metrics = [column for column in table.columns if column not in ("entry", "case", "region", *_NO_METRICS)]
    keys = ["entry", "seed", "case", "region"]
    of_seeds = table.groupby(keys, sort=False, as_index=False)[metrics].mean()
    return of_seeds.groupby(["entry", "case", "region"], sort=False, as_index=False)[metrics].mean()


def patient_means(cases: pd.DataFrame, patient_of: Mapping[str, str]) -> pd.DataFrame:
    """Average each patient over his or her cases.

    Args:
        cases: what `case_means` returns.
        patient_of: case -> patient, for all cases.

    Returns:
        A row for each entry, patient and region: columns entry, patient, region, and the metrics.
    """
    table = cases.assign(patient=cases["case"].map(dict(patient_of))).drop(columns="case")
    return table.groupby(["entry", "patient", "region"], sort=False, as_index=False).mean()


def values_by_entry(table: pd.DataFrame, region: str, metric: str, unit: str = "patient") -> pd.DataFrame:
    """Arrange the values of one metric in one region by patient (row) and entry (column).

    Args:
        table: what `patient_means` returns, or, with the unit "case", what `case_means` returns.
        region: name of the region.
        metric: name of the metric.
        unit: "patient" or "case".
    """
    rows = table[table["region"] == region]
    entries, units = dict.fromkeys(table["entry"]), dict.fromkeys(table[unit])
    return rows.pivot(index=unit, columns="entry", values=metric).reindex(index=list(units), columns=list(entries))
