"""Sentences below a leaderboard's heading: what the numbers are over, what is missing, and what so few cases cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from nnunet_glims.errors import listed
from nnunet_glims.evaluation.ranking import SIGNIFICANT, smallest_p
from nnunet_glims.evaluation.records import unchecked_cases
from nnunet_glims.evaluation.statistics import FEWEST
from nnunet_glims.nnunet.splits import FOLDS
from nnunet_glims.report.board import Board
from nnunet_glims.report.entries import LeaderboardEntry, Run

_FEW = 20
"""Largest number of patients for which the smallest p value is said. That of one pair of 20 patients is 2·10⁻⁶."""
_LISTED = 5


def remarks(board: Board) -> list[str]:
    """Return all sentences about a leaderboard."""
    return [*coverage(board), *averages(board), *limits(board), *files(board)]


def coverage(board: Board) -> list[str]:
    """Return what says that entries lack cases: number of cases, folds, and missing predictions; empty if none does."""
    partial = []
    others = []
    for entry in board.entries:
        for number, run in enumerate(entry.runs):
            name = _name(entry, number)
            if (sentence := _part(run)) is not None:
                partial.append(f"{name} {sentence}")
            summary = run.results.summary
            if missing := summary["missing_predictions"]:
                others.append(f"{name}: {_named(missing)} without a prediction, counted as empty.")
            others += [f"{name}: {remark}." for remark in summary["remarks"]]
    if board.left_out:
        counts = "; ".join(f"{name} {len(cases)}" for name, cases in board.left_out.items())
        others.append(f"Compared on the cases that all seeds of all entries have. Left out: {counts}.")
    if partial:
        return [f"Partial report, n = {_counted(len(board.cases), 'case')}: {'; '.join(partial)}.", *others]
    return others


def _part(run: Run) -> str | None:
    """Return which part of the cases a run has, such as "has fold 0 of 5, 4 of 20 cases"; None if it has all."""
    summary = run.results.summary
    has = summary["cases"]
    folds, left_out = summary["folds"], summary["left_out"]
    if folds is None:
        return f"has {has} of {has + len(left_out)} cases" if left_out else None
    one = "fold" if len(folds["evaluated"]) == 1 else "folds"
    which = f"{one} {', '.join(map(str, folds['evaluated']))}"
    if folds["count"] is None:
        known = f"has {which}, {_counted(has, 'case')}; the number of all folds is not known"
        return None if len(folds["evaluated"]) >= FOLDS and not left_out else known
    if has >= folds["cases"] and len(folds["evaluated"]) >= folds["count"]:
        return None
    return f"has {which} of {folds['count']}, {has} of {folds['cases']} cases"


def averages(board: Board) -> list[str]:
    """Return sentences that say over what the means are taken, and where the patients' names are from."""
    patients = board.patients
    found = []
    if board.most_seeds > 1:
        found.append(
            "Entries with several seeds: each case counts with its mean over the seeds. “seeds ±” is the standard deviation "
            "between the means of the seeds."
        )
    if patients.source is None:
        found.append("The patients of the cases are not known: each case counts as a patient of its own.")
        return found
    known = f"The patients of the cases are known from {patients.source.name}."
    if patients.have_several_cases:
        found.append(
            f"{known} The {len(board.cases)} cases are of {patients.count} patients: each patient counts with the mean over "
            "his or her cases. Means, standard deviations, tests and ranks are over patients, and intervals resample patients; "
            "“over cases” is the mean over all cases."
        )
    else:
        found.append(f"{known} Each case is of another patient.")
    if patients.unknown:
        found.append(f"It does not name {len(patients.unknown)} cases, which count as patients of their own.")
    return found


def limits(board: Board) -> list[str]:
    """Return what so few patients or cases cannot show: the smallest p values that they allow; empty for many."""
    count, unit = board.patients.count, board.unit
    n = _counted(count, unit)
    if count > _FEW or (len(board.entries) < 2 and count >= FEWEST):
        return []
    one = f"{smallest_p(count):.2g}"
    if count < FEWEST:
        pairs = len(board.entries) * (len(board.entries) - 1) // 2
        adjusted = (
            f", or below {smallest_p(count, pairs):.2g} after Holm’s correction over {pairs} pairs" if pairs > 1 else ""
        )
        return [
            f"{n} allow{'s' if count == 1 else ''} no claim: with fewer than {FEWEST} there are no intervals, no tests and no "
            f"best entry. No p value of a paired test of {n} can be below {one}{adjusted}."
        ]
    assert board.ranking is not None
    tests = max(1, *(sum(not isnan(test.p) for test in of_metric) for of_metric in board.tests.values()))
    of_pairs, of_ranks = smallest_p(count, tests), board.ranking.smallest_p
    adjusted = (
        f", {of_pairs:.2g} after Holm’s correction over the {tests} pairs and regions of a metric" if tests > 1 else ""
    )
    sentences = [
        f"The smallest p value that {n} allow: {one} for one test{adjusted}, {of_ranks:.2g} for the mean ranks."
    ]
    if of_pairs >= SIGNIFICANT:
        sentences.append("So no pair can differ significantly in a metric.")
    if of_ranks >= SIGNIFICANT:
        sentences.append(
            "So no pair can differ significantly in its ranks, and tests of all entries together are left out."
        )
    return sentences


def files(board: Board) -> list[str]:
    """Return sentences about label maps that are gone, and about files that the evaluations passed over."""
    found = unchecked(board.entries)
    for entry in board.entries:
        for number, run in enumerate(entry.runs):
            passed = [*run.results.summary["predictions_without_truth"], *run.results.summary["other_files"]]
            if passed:
                names = listed([name.replace("\\", "/").rpartition("/")[2] for name in passed], _LISTED)
                found.append(
                    f"{_name(entry, number)}: the evaluation passed over {_counted(len(passed), 'file')}: {names}."
                )
    return found


def unchecked(entries: Sequence[LeaderboardEntry]) -> list[str]:
    """Return sentences about label maps that are gone, so that nobody can see whether they have changed."""
    return [
        f"{_name(entry, number)}: the label maps of {_named(cases)} could not be checked for changes since the evaluation: "
        "they are no longer there."
        for entry in entries
        for number, run in enumerate(entry.runs)
        if (cases := unchecked_cases(run.results))
    ]


def _name(entry: LeaderboardEntry, number: int) -> str:
    return entry.name if len(entry.runs) == 1 else f"{entry.name}, seed {number + 1},"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _named(cases: Sequence[str]) -> str:
    return f"{_counted(len(cases), 'case')} ({listed(cases, _LISTED)})"
