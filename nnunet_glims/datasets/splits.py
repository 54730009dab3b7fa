"""Splits in nnU-Net's form: a list with an entry {"train": [case, …], "val": [case, …]} for each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json

Splits = list[dict[str, list[str]]]
FOLDS, SEED = 5, 12345
"""Those of nnU-Net's own splits, which it keeps inside; a test compares them with its source."""


def by_patient(patient_of: Mapping[str, str]) -> Splits:
    """Draw five folds of patients as nnU-Net draws five folds of cases (shuffled, with its seed).

    All cases of a patient are in one fold. With fewer than five patients there are as many folds as patients.

    Args:
        patient_of: case -> patient.
    """
    from sklearn.model_selection import KFold  # takes a second, which worker processes need not spend

    patients = np.array(sorted(set(patient_of.values())))
    splits = []
    for train, validation in KFold(min(FOLDS, len(patients)), shuffle=True, random_state=SEED).split(patients):
        chosen = {"train": set(patients[train].tolist()), "val": set(patients[validation].tolist())}
        splits.append(
            {part: sorted(case for case, patient in patient_of.items() if patient in of) for part, of in chosen.items()}
        )
    return splits


def from_file(path: Path, cases: Sequence[str]) -> Splits:
    """Read splits from a file; raise `UsageError` if it has another form or names cases that do not exist."""
    splits = read_json(path)
    try:
        named = {case for fold in splits for part in ("train", "val") for case in fold[part]}
        overlapping = {case for fold in splits for case in set(fold["train"]) & set(fold["val"])}
        if not all(isinstance(case, str) for case in named):
            raise TypeError
    except (TypeError, KeyError):
        raise UsageError(f'{path}: this is no list of {{"train": [case, …], "val": [case, …]}}') from None
    unknown = sorted(named - set(cases))
    if unknown:
        raise UsageError(f"{path}: names cases that the data set does not have: {', '.join(unknown[:8])}")
    if overlapping:
        raise UsageError(f"{path}: cases that train and validate in one fold: {', '.join(sorted(overlapping)[:8])}")
    return splits
