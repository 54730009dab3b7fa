"""Write the confusion matrices of entries as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation import confusion
from nnunet_glims.evaluation.csv_text import csv_text
from nnunet_glims.files import check_output_folder, new_file, write_text
from nnunet_glims.report.drawing import PLAIN_STYLE
from nnunet_glims.report.entries import LeaderboardEntry

_MOST_ACROSS = 3


def write_confusion(
    entries: Sequence[LeaderboardEntry], out: Path, only_with: str | None = None
) -> tuple[dict[str, confusion.Confusion], list[str]]:
    """Write confusion.csv, confusion.png and confusion.svg: means and standard deviations over cases.

    Args:
        entries: evaluated folders. Of an entry with several seeds, each case counts with its mean over the seeds.
        out: folder for the files, which is made if it does not exist.
        only_with: a region; cases whose truth does not have it are left out. None takes all cases.

    Returns:
        Entry -> its matrices, and the names of the labels.

    Raises:
        UsageError: the region was not evaluated, or an entry has no case with it. Then nothing is written.
    """
    results = {entry.name: entry.runs[0].results for entry in entries}
    labels = confusion.label_names([run.results for entry in entries for run in entry.runs])
    region = confusion.region_labels(results, only_with) if only_with else ()
    found = {entry.name: confusion.over_cases(entry.lines, len(labels), region) for entry in entries}
    for name, matrix in found.items():
        if not matrix.cases.any():
            what = f"has {only_with}" if only_with else "was evaluated"
            raise UsageError(f"{name}: none of its {len(results[name].cases)} cases {what}")
    check_output_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "confusion.csv", csv_text(confusion.table(found, labels)))
    with matplotlib.rc_context(PLAIN_STYLE):
        figure = Figure(figsize=size(len(found), len(labels), with_sd=True), layout="constrained")
        means = {name: matrix.mean for name, matrix in found.items()}
        draw(figure, means, labels, {name: matrix.sd for name, matrix in found.items()})
        for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with new_file(out / f"confusion.{ending}") as temporary:
                figure.savefig(temporary, dpi=150, metadata=metadata)
    return found, labels


def size(count: int, labels: int, with_sd: bool = False) -> tuple[float, float]:
    """Return width and height in inches of a figure of `count` matrices with `labels` labels."""
    across = min(_MOST_ACROSS, count)
    cell = (0.42 if labels > 5 else 0.62) * (1.25 if with_sd else 1)
    return across * (1.3 + cell * labels), -(-count // across) * (1.9 + cell * labels)


def draw(
    figure: Figure,
    matrices: Mapping[str, np.ndarray],
    labels: Sequence[str],
    sd: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Draw the row-normalised matrix of each entry; with `sd`, standard deviations are shown below the values."""
    figure.set_layout_engine("constrained", h_pad=0.1)
    across = min(_MOST_ACROSS, len(matrices))
    panels = figure.subplots(-(-len(matrices) // across), across, squeeze=False)
    for panel in panels.flat[len(matrices) :]:
        panel.set_axis_off()
    for axes, (entry, matrix) in zip(panels.flat, matrices.items(), strict=False):
        axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        for (row, column), part in np.ndenumerate(matrix):
            if np.isfinite(part):
                text = _number(part, len(labels))
                if sd is not None and np.isfinite(sd[entry][row, column]):
                    text += f"\n±{_number(float(sd[entry][row, column]), len(labels))}"
                colour = "white" if part > 0.6 else "#1b1f24"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(entry, fontsize=10)
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.set_xlabel("predicted", fontsize=8)
        axes.set_ylabel("true", fontsize=8)


def _number(part: float, labels: int) -> str:
    return f"{part:.2f}".removeprefix("0") if labels > 5 else f"{part:.2f}"
