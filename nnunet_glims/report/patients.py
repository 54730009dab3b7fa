"""Find the patient of each case, in the conversion report of the data set or in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_glims.datasets.conversion import REPORT
from nnunet_glims.datasets.conversion_report import read_conversion_report
from nnunet_glims.errors import UsageError
from nnunet_glims.report.entries import LeaderboardEntry


@dataclass(frozen=True)
class Patients:
    """The patients of all cases.

    Attributes:
        of_case: case -> patient. A case whose patient is not known is a patient of its own.
        source: the file that names the patients; None if there is none.
        unknown: cases that the file does not name.
    """

    of_case: Mapping[str, str]
    source: Path | None = None
    unknown: Sequence[str] = ()

    @property
    def count(self) -> int:
        """Number of patients."""
        return len(set(self.of_case.values()))

    @property
    def have_several_cases(self) -> bool:
        """Whether any patient has more than one case, so that means over patients and over cases may differ."""
        return self.count < len(self.of_case)


def patients_of(cases: Sequence[str], entries: Sequence[LeaderboardEntry], file: Path | None = None) -> Patients:
    """Return the patients of cases.

    Args:
        cases: names of the cases.
        entries: entries whose data set is searched for its conversion report.
        file: CSV file with the columns case and patient, which must name all cases; None takes the conversion report.

    Raises:
        UsageError: the CSV file does not exist, has other columns, or does not name a case.
    """
    if file is not None:
        named = _from_csv(file)
        missing = [case for case in cases if case not in named]
        if missing:
            raise UsageError(f"{file}: does not name the patient of case {missing[0]} ({len(missing)} cases in all)")
        return Patients({case: named[case] for case in cases}, file)
    for entry in entries:
        for folder in entry.dataset_folders:
            report = read_conversion_report(folder)
            named = {} if report is None else report.patients
            unknown = [case for case in cases if case not in named]
            if len(unknown) < len(cases):
                return Patients({case: named.get(case, case) for case in cases}, folder / REPORT, unknown)
    return Patients({case: case for case in cases})


def _from_csv(file: Path) -> dict[str, str]:
    named: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.DictReader(opened)
            if not {"case", "patient"} <= set(rows.fieldnames or ()):
                raise UsageError(
                    f"{file}: the columns must be case and patient, not {', '.join(rows.fieldnames or ())}"
                )
            for row in rows:
                case, patient = row["case"], row["patient"]
                if not case or not patient:
                    raise UsageError(f"{file}:{rows.line_num}: a row needs a case and its patient")
                if named.setdefault(case, patient) != patient:
                    raise UsageError(
                        f"{file}:{rows.line_num}: case {case} has two patients, {named[case]} and {patient}"
                    )
    except FileNotFoundError:
        raise UsageError(f"{file}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file}: cannot be read as CSV: {error}") from None
    return named
