"""Render the leaderboard as one HTML page that needs no other files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from math import isnan
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from nnunet_glims import __version__
from nnunet_glims.evaluation.ranking import SIGNIFICANT
from nnunet_glims.evaluation.regions import short
from nnunet_glims.networks import networks
from nnunet_glims.report import figures, tables
from nnunet_glims.report.board import Board
from nnunet_glims.report.drawing import entry_colour, label_colour
from nnunet_glims.report.remarks import averages, coverage, limits
from nnunet_glims.report.remarks import files as files_passed_over
from nnunet_glims.report.slices import ShownCase, stack


def render(
    board: Board, cases: Sequence[ShownCase] = (), published: Sequence[str] = (), notes: Sequence[str] = ()
) -> str:
    """Return the page as HTML.

    Args:
        board: what the page shows.
        cases: cases that readers can look at slice by slice.
        published: names of networks whose published figures are shown below the table, apart from the statistics.
        notes: further paragraphs below the heading.
    """
    folder = files("nnunet_glims.report")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["p"] = _p
    environment.filters["number"] = tables.number
    template = environment.from_string((folder / "leaderboard.html").read_text(encoding="utf-8"))
    stacks = [stack(case) for case in cases]
    return template.render(
        board=board,
        notes=[*coverage(board), *notes],
        version=__version__,
        style=Markup("".join((folder / name).read_text(encoding="utf-8") for name in ("page.css", "leaderboard.css"))),
        script=Markup((folder / "leaderboard.js").read_text(encoding="utf-8")),
        stacks=Markup(json.dumps(stacks).replace("<", r"\u003c")),
        cases=stacks,
        legend=_legend(board),
        columns=[
            {
                "heading": tables.heading(metric, region),
                "first": "descending" if metric.higher_is_better else "ascending",
            }
            for metric, region in tables.headings(board)
        ],
        costs=tables.COSTS,
        rows=[_row(board, entry) for entry in board.ordered],
        published=[network for network in networks() if network.name in published],
        figures=_figures(board),
        significant=SIGNIFICANT,
        protocol=_protocol(board),
        remarks=[*averages(board), *limits(board), *files_passed_over(board)],
    )


def _row(board: Board, entry: str) -> dict[str, Any]:
    metric_values = []
    for metric, region in tables.headings(board):
        described = board.statistics[metric.name, region][entry]
        spec = f".{tables.digits(metric)}f"
        interval = "" if described["ci95"] is None else "[{}, {}]".format(*(format(x, spec) for x in described["ci95"]))
        metric_values.append(
            {
                "sort": described["mean"],
                "mean": tables.number(described["mean"], spec),
                "sd": tables.number(described["sd"], spec),
                "interval": interval,
                "further": [
                    text.strip()
                    for text in (tables.few(board, described), *tables.further_means(board, metric, described))
                    if text
                ],
                "best": board.is_best(metric, region, entry),
                "worse": board.worse_than_best(metric, region, entry),
            }
        )
    costs = board.costs[entry]
    sorted_by = (costs.parameters, costs.gmac, costs.training_hours, costs.peak_gib, costs.seconds_a_case)
    return {
        "entry": entry,
        "colour": entry_colour(board.names.index(entry)),
        "metric_values": metric_values,
        "rank": None if board.ranking is None else float(board.ranking.mean[entry]),
        "costs": [
            {"sort": value, "text": text} for value, text in zip(sorted_by, tables.cost_texts(costs), strict=True)
        ],
        "unknown": costs.unknown,
    }


def _figures(board: Board) -> dict[str, Any]:
    def picture(drawn: str | None) -> Markup | None:
        return None if drawn is None else Markup(drawn)

    return {
        "boxes": [(metric.title, picture(figures.box_plots(board, metric))) for metric in board.metrics],
        "costs": picture(figures.accuracy_against_cost(board)),
        "curves": picture(figures.learning_curves(board)),
        "ranks": picture(figures.critical_difference(board)),
        "confusion": picture(figures.confusion(board)),
    }


def _legend(board: Board) -> list[dict[str, str]]:
    regions = board.entries[0].runs[0].results.summary["regions"]
    labels = sorted({label for region in regions.values() for label in region})
    return [
        {
            "colour": label_colour(label),
            "text": ", ".join(short(name) for name, region in regions.items() if label in region),
        }
        for label in labels
    ]


def _protocol(board: Board) -> str:
    protocol = board.entries[0].runs[0].results.summary["protocol"]
    text = f"surfaces: {protocol['surface']}; penalty: {protocol['penalty']}; NSD at {protocol['tolerance_mm']:g} mm"
    lesions = protocol["lesions"]
    if lesions is not None:
        text += f"; lesion-wise: dilation {lesions['dilation']}, lesions up to {lesions['ignored_mm3']:g} mm³ ignored"
    return text


def _p(value: float) -> str:
    return tables.MISSING if isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
