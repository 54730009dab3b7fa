"""The data of a leaderboard: entries on the same cases, their statistics, tests and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_glims.errors import UsageError, listed
from nnunet_glims.evaluation.averages import case_means, patient_means, values_by_entry
from nnunet_glims.evaluation.metrics import METRICS, metric_named
from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.ranking import SIGNIFICANT, PairedTest, Ranking, paired_tests, rank
from nnunet_glims.evaluation.statistics import FEWEST, describe
from nnunet_glims.report.costs import Costs, costs_of
from nnunet_glims.report.entries import LeaderboardEntry, Run
from nnunet_glims.report.patients import Patients, patients_of

RANKED = (("lesion_dice", "dice"), ("lesion_hd95", "hd95"))
"""Metrics by which entries are ranked: from each tuple the first one that was measured."""
SHOWN = ("dice", "hd95", "nsd")


@dataclass(frozen=True)
class Board:
    """All data that the page and the tables show.

    Attributes:
        title: heading of the page.
        entries: the entries, in the order given.
        cases: names of the cases that all seeds of all entries have.
        patients: the patients of these cases.
        regions: names of the regions, in the order of the evaluation.
        metrics: the metrics that are shown.
        by_case: a row for each entry, case and region, with the means of all metrics over seeds.
        by_patient: a row for each entry, patient and region, with the means of all metrics over seeds, then over cases.
        statistics: (metric, region) -> entry -> the result of `describe` for the values by patient, with three more keys:
            "case_mean", the mean over cases; "seeds", the number of seeds; "seed_sd", the standard deviation (n - 1) of the
            seeds' means, None for one seed.
        tests: metric -> the paired tests of all pairs of entries in all regions.
        ranking: ranks by the metrics `ranked_by`; None for one entry.
        costs: entry -> its costs, such as parameters and time.
        left_out: entry -> its cases that other entries or seeds do not have.
    """

    title: str
    entries: Sequence[LeaderboardEntry]
    cases: Sequence[str]
    patients: Patients
    regions: Sequence[str]
    metrics: Sequence[Metric]
    by_case: pd.DataFrame
    by_patient: pd.DataFrame
    statistics: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]
    tests: Mapping[str, Sequence[PairedTest]]
    ranking: Ranking | None
    ranked_by: Sequence[Metric]
    costs: Mapping[str, Costs]
    left_out: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        """Names of the entries, in the order given."""
        return [entry.name for entry in self.entries]

    @property
    def ordered(self) -> list[str]:
        """Names of the entries, the best first."""
        return list(self.ranking.mean.index) if self.ranking is not None else self.names

    @property
    def unit(self) -> str:
        """What the statistics are over: "patient" where a patient has several cases, else "case"."""
        return "patient" if self.patients.have_several_cases else "case"

    @property
    def has_enough_patients(self) -> bool:
        """Whether there are enough patients for intervals, tests and a best entry."""
        return self.patients.count >= FEWEST

    @property
    def most_seeds(self) -> int:
        """The largest number of seeds of an entry."""
        return max(len(entry.runs) for entry in self.entries)

    def mean(self, metric: Metric, region: str, entry: str) -> float:
        """Return the mean over patients; NaN where it is not defined."""
        value = self.statistics[metric.name, region][entry]["mean"]
        return float("nan") if value is None else value

    def best(self, metric: Metric, region: str) -> str | None:
        """Return the entry with the best mean; None if neither larger nor smaller is better, or if there is only one entry."""
        if metric.higher_is_better is None or len(self.entries) < 2:
            return None
        sign = 1 if metric.higher_is_better else -1
        means = {name: sign * self.mean(metric, region, name) for name in self.names}
        known = {name: value for name, value in means.items() if np.isfinite(value)}
        return max(known, key=lambda name: known[name]) if known else None

    def is_best(self, metric: Metric, region: str, entry: str) -> bool:
        """Return whether no entry has a better mean (to 9 digits); not where values are few, or some entries have more."""
        best = self.best(metric, region)
        counts = {described["n"] for described in self.statistics[metric.name, region].values()}
        if len(counts) > 1 or min(counts) < FEWEST:
            return False
        return best is not None and abs(self.mean(metric, region, entry) - self.mean(metric, region, best)) < 1e-9

    def worse_than_best(self, metric: Metric, region: str, entry: str) -> bool:
        """Return whether the best entry is significantly better (p < 0.05, Wilcoxon test, Holm's adjustment)."""
        best = self.best(metric, region)
        return any(
            test.p_holm < SIGNIFICANT
            for test in self.tests[metric.name]
            if test.region == region and {test.first, test.second} == {best, entry}
        )

    def case_means(self, metric: str, entry: str) -> pd.Series:
        """Return case -> mean of a metric over the regions, the lowest first."""
        values = [values_by_entry(self.by_case, region, metric, "case")[entry] for region in self.regions]
        return pd.concat(values, axis=1).mean(axis=1).sort_values(kind="stable")


def make_board(
    title: str,
    entries: Sequence[LeaderboardEntry],
    metrics: Sequence[str] = (),
    intersection: bool = False,
    patients: Path | None = None,
) -> Board:
    """Compare entries, and return all data of the leaderboard.

    Args:
        title: heading of the page.
        entries: results that were evaluated with the same settings.
        metrics: names of the metrics to show; empty for Dice, HD95, NSD and, where measured, lesion-wise Dice and HD95.
        intersection: whether to compare on the cases that all seeds of all entries have, if some lack cases.
        patients: CSV file with the columns case and patient; None searches for the data set's conversion report.

    Raises:
        UsageError: settings or cases differ, a metric is unknown or was not measured, or the
            CSV file does not name the patients.
    """
    _check_runs(entries)
    cases, left_out = _common_cases(entries, intersection)
    table = pd.concat(
        [
            run.results.table.assign(entry=entry.name, seed=seed)
            for entry in entries
            for seed, run in enumerate(entry.runs)
        ],
        ignore_index=True,
    )
    table = table[table["case"].isin(cases)]
    _check_truths(table)
    found_patients = patients_of(cases, entries, patients)
    by_case = case_means(table)
    by_patient = patient_means(by_case, found_patients.of_case)
    regions = list(entries[0].runs[0].results.summary["regions"])
    measured = [metric for metric in METRICS if metric.name in table.columns]
    shown = _shown(metrics, measured)
    ranked = [next(metric for name in names for metric in measured if metric.name == name) for names in RANKED]
    return Board(
        title,
        entries,
        cases,
        found_patients,
        regions,
        shown,
        by_case,
        by_patient,
        _statistics(table, by_case, by_patient, found_patients, regions, shown),
        {metric.name: paired_tests(by_patient, metric.name) for metric in shown},
        rank(by_patient, ranked) if len(entries) > 1 else None,
        ranked,
        {entry.name: costs_of(entry) for entry in entries},
        left_out,
    )


def _statistics(
    table: pd.DataFrame,
    by_case: pd.DataFrame,
    by_patient: pd.DataFrame,
    patients: Patients,
    regions: Sequence[str],
    metrics: Sequence[Metric],
) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Return the content of `Board.statistics`; `table` has a row for each entry, seed, case and region."""
    by_seed = [patient_means(case_means(rows), patients.of_case) for _, rows in table.groupby("seed", sort=True)]
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for metric in metrics:
        for region in regions:
            of_cases = values_by_entry(by_case, region, metric.name, "case").mean()
            of_seeds = [values_by_entry(seed, region, metric.name).mean() for seed in by_seed]
            found[metric.name, region] = {}
            for name, values in values_by_entry(by_patient, region, metric.name).items():
                seeds = [means[name] for means in of_seeds if name in means]
                case_mean = float(of_cases[name])
                found[metric.name, region][str(name)] = {
                    **describe(values.to_numpy(float)),
                    "case_mean": case_mean if np.isfinite(case_mean) else None,
                    "seeds": len(seeds),
                    "seed_sd": float(np.std(seeds, ddof=1)) if len(seeds) > 1 and np.isfinite(seeds).all() else None,
                }
    return found


def _check_runs(entries: Sequence[LeaderboardEntry]) -> None:
    """Raise `UsageError` if results cannot be compared: settings or versions differ."""
    runs = [(_title(entry, run), run) for entry in entries for run in entry.runs]
    first_name, first = runs[0]
    for name, run in runs:
        ours, its = first.results.method_version, run.results.method_version
        if ours != its:
            older = first_name if ours < its else name
            raise UsageError(
                f"{first_name} was evaluated with version {ours} of the metrics, {name} with version {its}: their numbers may "
                f"differ for the same files. Run nnunet-glims evaluate again for {older}"
            )
        for key, what in (("regions", "regions"), ("protocol", "settings"), ("ignored_label", "label to ignore")):
            wanted, found = first.results.summary[key], run.results.summary[key]
            if wanted != found:
                raise UsageError(
                    f"{first_name} and {name} were evaluated with different {what}: {wanted} and {found}. Evaluate them the "
                    "same way"
                )


def _title(entry: LeaderboardEntry, run: Run) -> str:
    return entry.name if len(entry.runs) == 1 else f"{entry.name} ({run.folder})"


def _common_cases(entries: Sequence[LeaderboardEntry], intersection: bool) -> tuple[list[str], dict[str, list[str]]]:
    """Return the cases that all seeds of all entries have, and entry -> its other cases."""
    cases_of = {
        _title(entry, run): {line["case"] for line in run.results.cases} for entry in entries for run in entry.runs
    }
    common = set.intersection(*cases_of.values())
    union = set.union(*cases_of.values())
    if common != union and not intersection:
        lines = [
            f"  {name} misses {len(union - cases)}: {listed(sorted(union - cases), 5)}"
            for name, cases in cases_of.items()
            if cases != union
        ]
        raise UsageError(
            "the entries do not have the same cases:\n"
            + "\n".join(lines)
            + "\nEvaluate these cases, or compare on the "
            f"{len(common)} that all have with --intersection"
        )
    if not common:
        raise UsageError("the entries have no case in common")
    others_of = {entry.name: {line["case"] for line in entry.lines} - common for entry in entries}
    return sorted(common), {name: sorted(others) for name, others in others_of.items() if others}


def _check_truths(table: pd.DataFrame) -> None:
    """Raise `UsageError` if the volume of a true region differs between entries."""
    for region in dict.fromkeys(table["region"]):
        rows = table[table["region"] == region]
        volumes = rows.pivot_table("truth_ml", "case", ["entry", "seed"], "mean", sort=False)
        differ = volumes.max(axis=1) - volumes.min(axis=1) > 1e-6 * volumes.max(axis=1)
        if differ.any():
            case = differ.idxmax()
            shown = ", ".join(f"{entry} {volume:.4g} ml" for (entry, _), volume in volumes.loc[case].items())
            raise UsageError(
                f"case {case}: the entries were evaluated against different label maps: the true {region} has {shown}"
            )


def _shown(names: Sequence[str], measured: Sequence[Metric]) -> list[Metric]:
    if not names:
        return [metric for metric in measured if metric.name in (*SHOWN, "lesion_dice", "lesion_hd95")]
    chosen = [metric_named(name) for name in names]
    for metric in chosen:
        if metric not in measured:
            raise UsageError(f"metric {metric.name!r} was not measured: evaluate with a preset that has it")
    return chosen
