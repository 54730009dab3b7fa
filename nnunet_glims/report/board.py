"""The leaderboard as data: entries on the same cases, their statistics, comparisons and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.metrics import METRICS, metric_named
from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.ranking import Comparison, Ranking, compare, rank, wide
from nnunet_glims.evaluation.statistics import describe
from nnunet_glims.report.costs import Costs, costs_of
from nnunet_glims.report.entries import Entry

SIGNIFICANT = 0.05
RANKED = (("lesion_dice", "dice"), ("lesion_hd95", "hd95"))
"""Metrics that entries are ranked by: of each pair the first one that was measured."""
SHOWN = ("dice", "hd95", "nsd")


@dataclass(frozen=True)
class Board:
    """All that the pages and tables show.

    Attributes:
        title: heading.
        entries: in the order given.
        cases: names of the cases that all entries have.
        regions: in the order of the evaluation.
        metrics: the ones shown.
        table: entry, case, fold, region and all metrics, of these cases.
        statistics: (metric, region) -> entry -> what `describe` gives.
        comparisons: metric -> all pairs of entries in all regions.
        ranking: by `ranked_by`; None for one entry.
        costs: entry -> parameters, time, ...
        left_out: entry -> its cases that others do not have.
    """

    title: str
    entries: Sequence[Entry]
    cases: Sequence[str]
    regions: Sequence[str]
    metrics: Sequence[Metric]
    table: pd.DataFrame
    statistics: Mapping[tuple[str, str], Mapping[str, Mapping]]
    comparisons: Mapping[str, Sequence[Comparison]]
    ranking: Ranking | None
    ranked_by: Sequence[Metric]
    costs: Mapping[str, Costs]
    left_out: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        """Of the entries."""
        return [entry.name for entry in self.entries]

    @property
    def ordered(self) -> list[str]:
        """Names of the entries, the best first."""
        return list(self.ranking.mean.index) if self.ranking is not None else self.names

    def mean(self, metric: Metric, region: str, entry: str) -> float:
        """NaN where it is not defined."""
        value = self.statistics[metric.name, region][entry]["mean"]
        return float("nan") if value is None else value

    def best(self, metric: Metric, region: str) -> str | None:
        """The entry with the best mean; None where there is no better or worse, or only one entry."""
        if metric.higher_is_better is None or len(self.entries) < 2:
            return None
        sign = 1 if metric.higher_is_better else -1
        means = {name: sign * self.mean(metric, region, name) for name in self.names}
        known = {name: value for name, value in means.items() if np.isfinite(value)}
        return max(known, key=lambda name: known[name]) if known else None

    def is_best(self, metric: Metric, region: str, entry: str) -> bool:
        """Whether no entry has a better mean, to 9 digits, and all of them have as many values."""
        best = self.best(metric, region)
        if len({described["n"] for described in self.statistics[metric.name, region].values()}) > 1:
            return False
        return best is not None and abs(self.mean(metric, region, entry) - self.mean(metric, region, best)) < 1e-9

    def worse_than_best(self, metric: Metric, region: str, entry: str) -> bool:
        """Whether the best entry is better by more than chance (Wilcoxon, Holm)."""
        best = self.best(metric, region)
        return any(
            comparison.p_holm < SIGNIFICANT
            for comparison in self.comparisons[metric.name]
            if comparison.region == region and {comparison.first, comparison.second} == {best, entry}
        )

    def case_means(self, metric: str, entry: str) -> pd.Series:
        """Case -> mean over the regions, the lowest first."""
        values = [wide(self.table, region, metric)[entry] for region in self.regions]
        return pd.concat(values, axis=1).mean(axis=1).sort_values(kind="stable")


def make_board(title: str, entries: Sequence[Entry], metrics: Sequence[str] = (), intersection: bool = False) -> Board:
    """Compare entries.

    Args:
        title: heading.
        entries: evaluated by the same settings.
        metrics: names of those to show; empty for Dice, HD95, NSD and, where measured, lesion-wise Dice and HD95.
        intersection: whether to compare on the cases that all entries have, where some miss cases.

    Raises:
        UsageError: settings or cases differ, a case could not be evaluated, or a metric is unknown or was not measured.
    """
    _check_settings(entries)
    cases, left_out = _common_cases(entries, intersection)
    table = pd.concat([entry.results.table.assign(entry=entry.name) for entry in entries], ignore_index=True)
    table = table[table["case"].isin(cases)]
    _check_truths(table)
    regions = list(entries[0].results.summary["regions"])
    measured = [metric for metric in METRICS if metric.name in table.columns]
    shown = _shown(metrics, measured)
    ranked = [next(metric for name in names for metric in measured if metric.name == name) for names in RANKED]
    statistics = {
        (metric.name, region): {
            name: describe(values.to_numpy(float)) for name, values in wide(table, region, metric.name).items()
        }
        for metric in shown
        for region in regions
    }
    return Board(
        title,
        entries,
        cases,
        regions,
        shown,
        table,
        statistics,
        {metric.name: compare(table, metric.name) for metric in shown},
        rank(table, ranked) if len(entries) > 1 else None,
        ranked,
        {entry.name: costs_of(entry) for entry in entries},
        left_out,
    )


def _check_settings(entries: Sequence[Entry]) -> None:
    first = entries[0]
    for entry in entries:
        for key, what in (("regions", "regions"), ("protocol", "settings"), ("ignored_label", "label to ignore")):
            ours, its = first.results.summary[key], entry.results.summary[key]
            if ours != its:
                raise UsageError(
                    f"{first.name} and {entry.name} were evaluated with different {what}: {ours} and {its}. Evaluate them "
                    "the same way"
                )
        failed = entry.results.summary["failed"]
        if failed:
            raise UsageError(
                f"{entry.name}: {len(failed)} cases could not be evaluated, such as {next(iter(failed.items()))}: mend them "
                "and run nnunet-glims evaluate again"
            )


def _common_cases(entries: Sequence[Entry], intersection: bool) -> tuple[list[str], dict[str, list[str]]]:
    cases_of = {entry.name: {line["case"] for line in entry.results.cases} for entry in entries}
    common = set.intersection(*cases_of.values())
    union = set.union(*cases_of.values())
    if common != union and not intersection:
        lines = [
            f"  {name} misses {len(union - cases)}: {_some(union - cases)}"
            for name, cases in cases_of.items()
            if cases != union
        ]
        raise UsageError(
            "the entries do not have the same cases:\n"
            + "\n".join(lines)
            + "\nEvaluate these cases, or compare on the "
            f"{len(common)} that all entries have with --intersection"
        )
    if not common:
        raise UsageError("the entries have no case in common")
    left_out = {name: sorted(cases - common) for name, cases in cases_of.items() if cases != common}
    return sorted(common), left_out


def _check_truths(table: pd.DataFrame) -> None:
    """Raise `UsageError` where a true region has another volume in one entry than in another."""
    for region in dict.fromkeys(table["region"]):
        volumes = wide(table, region, "truth_ml")
        differ = volumes.max(axis=1) - volumes.min(axis=1) > 1e-6 * volumes.max(axis=1)
        if differ.any():
            case = differ.idxmax()
            shown = ", ".join(f"{entry} {volume:.4g} ml" for entry, volume in volumes.loc[case].items())
            raise UsageError(
                f"case {case}: the entries were evaluated against different label maps: the true {region} has {shown}"
            )


def _some(names: set[str], most: int = 5) -> str:
    shown = sorted(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shown(names: Sequence[str], measured: Sequence[Metric]) -> list[Metric]:
    if not names:
        return [metric for metric in measured if metric.name in (*SHOWN, "lesion_dice", "lesion_hd95")]
    chosen = [metric_named(name) for name in names]
    for metric in chosen:
        if metric not in measured:
            raise UsageError(f"metric {metric.name!r} was not measured: evaluate with a preset that has it")
    return chosen
