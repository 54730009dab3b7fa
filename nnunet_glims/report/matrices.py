"""Confusion matrices as pictures, one beside the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

_MOST_ACROSS = 3


def size(count: int, labels: int, with_sd: bool = False) -> tuple[float, float]:
    """Inches of a figure of so many matrices of so many labels."""
    across = min(_MOST_ACROSS, count)
    cell = (0.42 if labels > 5 else 0.62) * (1.25 if with_sd else 1)
    return across * (1.3 + cell * labels), -(-count // across) * (1.9 + cell * labels)


def draw(
    figure: Figure,
    matrices: Mapping[str, np.ndarray],
    labels: Sequence[str],
    sd: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Draw row-normalised matrices, by entry; with `sd`, the standard deviations below the values."""
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
                    text += f"\n±{_number(sd[entry][row, column], len(labels))}"
                colour = "white" if part > 0.6 else "#1b1f24"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(entry, fontsize=10)
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.set_xlabel("predicted", fontsize=8)
        axes.set_ylabel("true", fontsize=8)


def _number(part: float, labels: int) -> str:
    return f"{part:.2f}".removeprefix("0") if labels > 5 else f"{part:.2f}"
