"""Seeds are averaged first, then a patient's cases: values worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from nnunet_glims.evaluation.averages import case_means, patient_means, values_by_entry

PATIENTS = {"a1": "A", "a2": "A", "b": "B"}


def table(*rows):
    return pd.DataFrame(rows, columns=["entry", "seed", "case", "fold", "region", "dice"])


def test_seeds_then_cases_of_a_patient():
    cases = case_means(
        table(
            ("x", 0, "a1", None, "WT", 0.2),
            ("x", 0, "a2", None, "WT", 0.5),
            ("x", 0, "b", None, "WT", 0.9),
            ("x", 1, "a1", None, "WT", 0.4),
            ("x", 1, "a2", None, "WT", 0.7),
            ("x", 1, "b", None, "WT", 0.7),
        )
    )
    assert cases["dice"].tolist() == pytest.approx([0.3, 0.6, 0.8])
    patients = patient_means(cases, PATIENTS)
    assert dict(zip(patients["patient"], patients["dice"], strict=True)) == pytest.approx({"A": 0.45, "B": 0.8})


def test_a_case_that_two_folds_predicted_counts_once_in_its_seed():
    rows = [("x", 0, "b", 0, "WT", 0.2), ("x", 0, "b", 1, "WT", 0.4), ("x", 1, "b", 0, "WT", 0.9)]
    assert case_means(table(*rows))["dice"].tolist() == pytest.approx([(0.3 + 0.9) / 2])


def test_undefined_values_are_left_out_of_means():
    nan = float("nan")
    rows = [("x", 0, "a1", None, "WT", nan), ("x", 0, "a2", None, "WT", 0.5), ("x", 0, "b", None, "WT", nan)]
    patients = patient_means(case_means(table(*rows)), PATIENTS)
    assert patients["dice"].tolist() == pytest.approx([0.5, nan], nan_ok=True)


def test_values_by_entry_keep_the_order_and_mark_what_is_missing():
    rows = [("y", 0, "b", None, "WT", 0.1), ("y", 0, "a1", None, "WT", 0.2), ("x", 0, "a1", None, "WT", 0.3)]
    values = values_by_entry(case_means(table(*rows)), "WT", "dice", "case")
    assert (list(values.index), list(values.columns)) == (["b", "a1"], ["y", "x"])
    np.testing.assert_array_equal(values.to_numpy(), [[0.1, np.nan], [0.2, 0.3]])
