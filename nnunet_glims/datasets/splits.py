"""Splits in nnU-Net's form: a list with an entry {"train": [case, …], "val": [case, …]} for each fold."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_glims.errors import UsageError, listed
from nnunet_glims.nnunet.splits import FOLDS, SEED, read_splits

Splits = list[dict[str, list[str]]]


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


@dataclass(frozen=True)
class OwnSplits:
    """Splits that a user wrote to a file.

    Attributes:
        path: the file.
        folds: its content. The names of cases are in Unicode's composed form (NFC).
    """

    path: Path
    folds: Splits

    @classmethod
    def read(cls, path: Path) -> OwnSplits:
        """Read a JSON file like nnU-Net's splits_final.json: a list with {"train": [case, …], "val": [case, …]} for each fold.

        Raises:
            UsageError: the file has another form, there are no cases in a part of a fold, or a case is twice in a fold.
        """
        folds = [
            {part: [unicodedata.normalize("NFC", case) for case in names] for part, names in fold.model_dump().items()}
            for fold in read_splits(path)
        ]
        for number, fold in enumerate(folds):
            empty = next((part for part, names in fold.items() if not names), None)
            if empty is not None:
                raise UsageError(
                    f"{path}: fold {number} has no cases in {empty!r}: each fold trains and validates on some"
                )
            count = Counter([*fold["train"], *fold["val"]])
            twice = sorted(case for case in count if count[case] > 1)
            if twice:
                raise UsageError(f"{path}: fold {number} has {listed(twice)} twice: a case trains or validates, once")
        return cls(path, folds)

    def of(self, cases: Sequence[str]) -> Splits:
        """Return the splits; raise `UsageError` if they name a case that is not among these."""
        unknown = sorted({case for fold in self.folds for names in fold.values() for case in names} - set(cases))
        if unknown:
            raise UsageError(f"{self.path}: names {listed(unknown)}: the data set has no such training cases")
        return self.folds


def published(folds: Splits, cases: Sequence[str], partial: bool) -> Splits:
    """Return a published split for the cases that are there.

    Args:
        folds: the complete split.
        cases: the training cases of the data set.
        partial: whether cases of the split may be missing.

    Raises:
        UsageError: cases are missing and `partial` is not set, or no case is left to train or to validate on.
    """
    there = set(cases)
    missing = sorted({case for fold in folds for names in fold.values() for case in names} - there)
    if missing and not partial:
        raise UsageError(
            f"the published split needs {len(missing)} cases with a segmentation that are not there: {listed(missing)}. "
            "Results on the others cannot be compared with published ones: complete the data, or leave these cases out of "
            "the split with --partial"
        )
    kept = [{part: [name for name in names if name in there] for part, names in fold.items()} for fold in folds]
    empty = next((part for fold in kept for part, names in fold.items() if not names), None)
    if empty is not None:
        what = "train" if empty == "train" else "validate"
        raise UsageError(f"no case of the published split to {what} on is there: choose another split or protocol")
    return kept
