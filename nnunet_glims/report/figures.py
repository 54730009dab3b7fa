"""The figures of the leaderboard, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nnunet_glims.evaluation.averages import values_by_entry
from nnunet_glims.evaluation.confusion import counts_of, label_names, row_normalised
from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.regions import short
from nnunet_glims.report import matrices
from nnunet_glims.report.board import Board
from nnunet_glims.report.drawing import entry_colour, entry_marker, listed, svg

MOST_POINTS = 100
"""Largest number of cases for which a box plot shows each case as a point."""


def box_plots(board: Board, metric: Metric) -> str:
    """Draw a box plot for each entry and region: quartiles, whiskers to 1.5 interquartile ranges, and a point for each case.

    Of an entry with several seeds, a case's value is the mean over the seeds.
    """
    entries = board.names
    width = 0.8 / len(entries)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rng = np.random.default_rng(0)
        handles: list[Line2D] = []
        for index, entry in enumerate(entries):
            places = np.arange(len(board.regions)) + (index - (len(entries) - 1) / 2) * width
            values = [
                values_by_entry(board.by_case, region, metric.name, "case")[entry].dropna().to_numpy(float)
                for region in board.regions
            ]
            colour = entry_colour(index)
            parts = axes.boxplot(values, positions=places, widths=0.8 * width, manage_ticks=False, showfliers=False)
            for name in ("boxes", "whiskers", "caps", "medians"):
                for line in parts[name]:
                    line.set(color=colour, linewidth=2 if name == "medians" else 1.2)
            for place, cases in zip(places, values, strict=True):
                if len(cases) <= MOST_POINTS:
                    jitter = rng.uniform(-0.3, 0.3, len(cases)) * width
                    axes.plot(
                        place + jitter, cases, entry_marker(index), color=colour, markersize=2.5, alpha=0.5, linewidth=0
                    )
            handles += axes.plot([], [], color=colour, linewidth=2)
        axes.set_xticks(range(len(board.regions)), [short(region) for region in board.regions])
        axes.set_ylabel(metric.title + (f" [{metric.unit}]" if metric.unit else ""))
        _plain(axes)
        axes.legend(handles, entries, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))

    inches = min(11.0, 3 + 0.5 * len(entries) * len(board.regions))
    alt = f"{metric.title} of each case by region, as boxes for {listed(entries)}"
    return svg(draw, (max(6.0, inches), 3.6), alt)


def accuracy_against_cost(board: Board) -> str | None:
    """Draw mean Dice over regions against multiply-accumulates and parameters; return None if no network is known."""
    metric = next((metric for metric in board.metrics if metric.higher_is_better), None)
    known = [name for name in board.names if board.costs[name].gmac is not None]
    if metric is None or not known:
        return None

    def draw(figure: Figure) -> None:
        sides = figure.subplots(1, 2, sharey=True)
        for axes, attribute, scale, label in (
            (sides[0], "gmac", 1, "GMAC for one patch"),
            (sides[1], "parameters", 1e-6, "parameters [million]"),
        ):
            for index, name in enumerate(board.names):
                if name not in known:
                    continue
                cost = scale * getattr(board.costs[name], attribute)
                mean = np.nanmean([board.mean(metric, region, name) for region in board.regions])
                axes.plot(cost, mean, entry_marker(index), color=entry_colour(index), markersize=9)
                axes.annotate(name, (cost, mean), (0, 9), textcoords="offset points", fontsize=9, ha="center")
            axes.set_xlim(left=0)
            axes.set_xlabel(label)
            axes.margins(0.2)
            _plain(axes)
        sides[0].set_ylabel(f"{metric.title}, mean over regions")

    return svg(draw, (9, 3.6), f"Mean {metric.title} against multiply-accumulates and against parameters")


def learning_curves(board: Board) -> str | None:
    """Draw loss and pseudo Dice of every fold of every seed; return None if there is no training log."""
    logged = [name for name in board.names if board.costs[name].logs]
    if not logged:
        return None

    def draw(figure: Figure) -> None:
        loss, dice = figure.subplots(1, 2)
        handles: list[Line2D] = []
        for name in logged:
            index = board.names.index(name)
            style = {"color": entry_colour(index), "linewidth": 1.1, "alpha": 0.9}
            handles += loss.plot([], [], **style)
            for log in board.costs[name].logs:
                epochs = range(1, 1 + len(log.curves["pseudo Dice"]))
                loss.plot(epochs, log.curves["training loss"], **style)
                loss.plot(epochs, log.curves["validation loss"], linestyle="--", **style)
                dice.plot(epochs, log.curves["pseudo Dice"], **style)
        loss.set_ylabel("loss")
        dice.set_ylabel("pseudo Dice")
        dice.set_ylim(0, 1)
        for axes in (loss, dice):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _plain(axes)
        loss.legend(handles, logged, frameon=False, fontsize=9)

    return svg(draw, (9, 3.4), f"Loss and pseudo Dice over the epochs of every fold, for {listed(logged)}")


def critical_difference(board: Board) -> str | None:
    """Draw mean ranks on a line, with bars between entries that do not differ significantly (Demšar 2006).

    Returns None for fewer than three entries.
    """
    ranking = board.ranking
    if ranking is None or len(board.entries) < 3 or ranking.critical_difference is None:
        return None
    mean, width = ranking.places.mean().sort_values(kind="stable"), ranking.critical_difference
    names = list(mean.index)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        count = len(names)
        half = (count + 1) // 2
        for place, name in enumerate(names):
            left = place < half
            height = -1 - (place if left else count - 1 - place)
            edge = 0.7 if left else count + 0.3
            axes.plot([mean[name], mean[name], edge], [0, height, height], color=entry_colour(board.names.index(name)))
            axes.text(
                edge, height, f"  {name} {mean[name]:.2f}  ", ha="right" if left else "left", va="center", fontsize=9
            )
        level = 0.25
        for first, last in _cliques([mean[name] for name in names], width):
            colour = axes.spines["bottom"].get_edgecolor()
            axes.plot([mean[names[first]] - 0.03, mean[names[last]] + 0.03], [-level] * 2, color=colour, linewidth=3)
            level += 0.25
        axes.plot([1, 1 + width], [0.9] * 2, color=axes.spines["bottom"].get_edgecolor())
        axes.text(1 + width / 2, 1.0, f"critical difference {width:.2f}", ha="center", va="bottom", fontsize=9)
        axes.set_xlim(0.2, count + 0.8)
        axes.set_ylim(-1.5 - half, 1.7)
        axes.set_xticks(range(1, count + 1))
        axes.set_yticks([])
        axes.spines[["left", "right", "bottom"]].set_visible(False)
        axes.spines["top"].set_position(("data", 0))
        axes.spines["top"].set_bounds(1, count)
        axes.xaxis.tick_top()

    return svg(draw, (8, 1.3 + 0.28 * len(names)), f"Critical difference diagram: mean places of {listed(names)}")


def _cliques(means: Sequence[float], width: float) -> list[tuple[int, int]]:
    """Return first and last index of each largest group of entries, sorted by rank, within the critical difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(means)):
        last = max(place for place in range(first, len(means)) if means[place] - means[first] < width)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def confusion(board: Board) -> str:
    """Draw a confusion matrix for each entry: the part of the voxels with a true label that got each predicted label."""
    labels = label_names([run.results for entry in board.entries for run in entry.runs])
    cases = set(board.cases)
    found = {}
    for entry in board.entries:
        counts = np.zeros((len(labels), len(labels)))
        for run in entry.runs:
            folds_of = Counter(
                line["case"] for line in run.results.cases
            )  # a case that two folds predicted counts once
            for line in run.results.cases:
                if line["case"] in cases:
                    counts += counts_of(line, len(labels)) / folds_of[line["case"]]
        found[entry.name] = row_normalised(counts)
    alt = f"Row-normalised confusion matrices of {listed(board.names)}"
    return svg(lambda figure: matrices.draw(figure, found, labels), matrices.size(len(found), len(labels)), alt)


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
