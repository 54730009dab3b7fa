"""Write the leaderboard as Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.regions import short
from nnunet_glims.report import escaping
from nnunet_glims.report.board import Board
from nnunet_glims.report.costs import Costs
from nnunet_glims.report.remarks import remarks

MISSING = "–"
COSTS = ("Parameters [M]", "GMAC", "Training [h]", "Memory [GiB]", "Inference [s/case]")
LEGEND = (
    "Mean ± standard deviation over {unit}s, with the 95 % bootstrap interval of the mean in brackets. Bold: the best mean. "
    "An asterisk: worse than the best by more than chance (Wilcoxon signed-rank test over {unit}s, Holm's correction, 0.05)."
)
LEGEND_OF_FEW = "Mean ± standard deviation over {unit}s."
"""The legend of a table with too few patients for intervals, tests and a best entry."""


def digits(metric: Metric) -> int:
    """Return the number of digits after the decimal point."""
    return 1 if metric.unit else 3


def number(value: float | None, spec: str) -> str:
    """Return a value in the format `spec`, or a dash for None."""
    return MISSING if value is None or not math.isfinite(value) else format(value, spec)


def cost_texts(costs: Costs) -> list[str]:
    """Return the costs as texts, in the order of `COSTS`."""
    device = f" ({costs.device.upper()})" if costs.device else ""
    return [
        number(None if costs.parameters is None else costs.parameters / 1e6, ".2f"),
        number(costs.gmac, ".1f"),
        MISSING if costs.training_hours is None else f"{costs.training_hours:.2f}{device}",
        number(costs.peak_gib, ".1f"),
        number(costs.seconds_a_case, ".1f"),
    ]


def headings(board: Board) -> list[tuple[Metric, str]]:
    """Return metric and region of each column."""
    return [(metric, region) for metric in board.metrics for region in board.regions]


def heading(metric: Metric, region: str) -> str:
    """Return the heading of a column."""
    return f"{metric.title} {short(region)}" + (f" [{metric.unit}]" if metric.unit else "")


def value(board: Board, metric: Metric, region: str, entry: str, interval: bool = True) -> str:
    """Return the text of a cell: mean ± standard deviation [interval], and the results of `few` and `further_means`."""
    described = board.statistics[metric.name, region][entry]
    spec = f".{digits(metric)}f"
    text = number(described["mean"], spec)
    if described["sd"] is not None:
        text += f" ± {number(described['sd'], spec)}"
    if interval and described["ci95"] is not None:
        low, high = described["ci95"]
        text += f" [{number(low, spec)}, {number(high, spec)}]"
    text += few(board, described)
    return "; ".join([text, *further_means(board, metric, described)]) if interval else text


def few(board: Board, described: Mapping[str, Any]) -> str:
    """Return " (n of N patients)" if some patients or cases have no value; else an empty text."""
    if not described["undefined"]:
        return ""
    return f" ({described['n']} of {described['n'] + described['undefined']} {board.unit}s)"


def further_means(board: Board, metric: Metric, described: Mapping[str, Any]) -> list[str]:
    """Return texts with the mean over cases if patients have several, and with the deviation between several seeds."""
    spec = f".{digits(metric)}f"
    texts = []
    if board.patients.have_several_cases:
        texts.append(f"over cases {number(described['case_mean'], spec)}")
    if described["seed_sd"] is not None:
        texts.append(f"{described['seeds']} seeds ± {number(described['seed_sd'], spec)}")
    return texts


def _rows(board: Board) -> tuple[list[str], list[list[tuple[str, bool, bool]]]]:
    """Return the headings, and the values of each row as (text, is the best, is worse than the best)."""
    columns = headings(board)
    head = ["Entry", *(heading(*column) for column in columns)]
    if board.ranking is not None:
        head.append("Mean rank")
    head += COSTS
    rows = []
    for entry in board.ordered:
        row_values = [(entry, False, False)]
        for metric, region in columns:
            best = board.is_best(metric, region, entry)
            row_values.append((value(board, metric, region, entry), best, board.worse_than_best(metric, region, entry)))
        if board.ranking is not None:
            row_values.append((f"{board.ranking.mean[entry]:.2f}", False, False))
        row_values += [(text, False, False) for text in cost_texts(board.costs[entry])]
        rows.append(row_values)
    return head, rows


def markdown(board: Board, notes: Sequence[str] = ()) -> str:
    """Return the leaderboard in Markdown: notes, table, legend, and the paired tests."""
    head, rows = _rows(board)
    lines = [f"# {escaping.markdown(board.title)}", ""]
    lines += [text for note in notes for text in (escaping.markdown(note), "")]
    lines += [_markdown_row(map(escaping.markdown, head)), _markdown_row(["---"] * len(head))]
    for row_values in rows:
        cells = [(escaping.markdown(text), best, worse) for text, best, worse in row_values]
        lines.append(_markdown_row((f"**{text}**" if best else text) + ("*" * worse) for text, best, worse in cells))
    legend = (LEGEND if board.has_enough_patients else LEGEND_OF_FEW).format(unit=board.unit)
    lines += ["", f"{len(board.cases)} cases. {legend} {escaping.markdown(' '.join(remarks(board)))}"]
    if board.ranking is not None:
        lines += ["", "## Pairs", "", *_pairs(board)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _pairs(board: Board) -> list[str]:
    lines = [
        _markdown_row(
            ["Metric", "Region", "Entries", "Difference", "p (Holm)", "Effect", f"{board.unit}s".capitalize()]
        ),
        _markdown_row(["---"] * 7),
    ]
    for metric in board.metrics:
        for pair in board.tests[metric.name]:
            lines.append(
                _markdown_row(
                    [
                        metric.title,
                        escaping.markdown(short(pair.region)),
                        escaping.markdown(f"{pair.first} − {pair.second}"),
                        number(pair.difference, f"+.{digits(metric) + 1}f"),
                        number(pair.p_holm, ".2g"),
                        f"{pair.effect:+.2f}",
                        str(pair.patients),
                    ]
                )
            )
    return lines


def latex(board: Board, notes: Sequence[str] = ()) -> str:
    """Return a booktabs table of means and standard deviations over patients, without intervals, to fit on a page."""
    columns = headings(board)
    with_rank = board.ranking is not None
    lines = [
        "% needs \\usepackage{booktabs}",
        *(f"% {escaping.one_line(note)}" for note in notes),
        f"% mean ± standard deviation over {board.unit}s; {escaping.one_line(' '.join(remarks(board)))}",
        f"\\begin{{tabular}}{{l{'r' * (len(columns) + with_rank + 2)}}}",
        "\\toprule",
        " & ".join(
            [
                "",
                *(
                    f"\\multicolumn{{{len(board.regions)}}}{{c}}{{{escaping.latex(_with_unit(metric))}}}"
                    for metric in board.metrics
                ),
            ]
            + [""] * (with_rank + 2)
        )
        + r" \\",
        " & ".join(
            ["", *(escaping.latex(short(region)) for _, region in columns), *(["Rank"] * with_rank), "Par. [M]", "GMAC"]
        )
        + r" \\",
        "\\midrule",
    ]
    for entry in board.ordered:
        row_values = [escaping.latex(entry)]
        for metric, region in columns:
            text = escaping.latex(value(board, metric, region, entry, interval=False))
            if board.is_best(metric, region, entry):
                text = f"\\textbf{{{text}}}"
            row_values.append(text + ("$^*$" if board.worse_than_best(metric, region, entry) else ""))
        if board.ranking is not None:
            row_values.append(f"{board.ranking.mean[entry]:.2f}")
        row_values += [escaping.latex(text) for text in cost_texts(board.costs[entry])[:2]]
        lines.append(" & ".join(row_values) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _with_unit(metric: Metric) -> str:
    return f"{metric.title} [{metric.unit}]" if metric.unit else metric.title


def statistics_table(board: Board) -> pd.DataFrame:
    """Return all statistics, unrounded, with a row for each entry, region and metric."""
    rows = []
    for (metric, region), by_entry in board.statistics.items():
        for entry, described in by_entry.items():
            low, high = described["ci95"] or (None, None)
            plain = {key: described[key] for key in ("n", "undefined", "mean", "sd", "median", "q1", "q3")}
            rows.append(
                {
                    "entry": entry,
                    "region": region,
                    "metric": metric,
                    **plain,
                    "ci95_low": low,
                    "ci95_high": high,
                    "mean_over_cases": described["case_mean"],
                    "seeds": described["seeds"],
                    "sd_between_seeds": described["seed_sd"],
                }
            )
    return pd.DataFrame(rows)


def tests_table(board: Board) -> pd.DataFrame:
    """Return all paired tests, unrounded, with a row for each pair of entries, region and metric."""
    return pd.DataFrame([vars(test) for tests in board.tests.values() for test in tests])
