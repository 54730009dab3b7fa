"""What the pictures of all pages have in common: colours, grey values, figures inside HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; no network shares one with a region.
ENTRY_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#7F7F7F")
LABEL_COLOURS = ("#D55E00", "#56B4E9", "#F0E442", "#999999", "#F5C6AA", "#B3E2CD")
MARKERS = ("o", "s", "^", "D", "v")

PLAIN_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "nnunet-glims", "text.parse_math": False}
"""Text stays text, the same figure gives the same bytes, and names with $ are not read as formulas."""
_COLOURED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
THEMES = {"light": "#1b1f24", "dark": "#e6e9ec"}
"""Colour of lines and text where the reader's system is set to light or dark."""


def entry_colour(index: int) -> str:
    """The colour of the entry with that number."""
    return ENTRY_COLOURS[index % len(ENTRY_COLOURS)]


def entry_marker(index: int) -> str:
    """The marker of the entry with that number, which distinguishes entries of one colour."""
    return MARKERS[index // len(ENTRY_COLOURS) % len(MARKERS)]


def label_colour(label: int) -> str:
    """The colour of a label from 1."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]


def grey(image: np.ndarray) -> np.ndarray:
    """The values scaled to 0 to 1; the brightest 0.5 % of those that are not zero become 1."""
    top = np.percentile(image[image != 0], 99.5) if image.any() else 1
    return np.clip(image / top, 0, 1)


def listed(names: Iterable[str]) -> str:
    """ "A, B and C" """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def data_uri(content: bytes, kind: str) -> str:
    """A data URI for the src of a picture; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def svg(draw: Callable[[Figure], None], size: tuple[float, float], alt: str) -> str:
    """A figure as an HTML picture of lines, for light and for dark pages; `size` in inches."""
    pictures = {}
    for theme, colour in THEMES.items():
        style: dict[Any, Any] = dict.fromkeys(_COLOURED, colour)
        with matplotlib.rc_context({**style, **PLAIN_STYLE}):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            content = io.BytesIO()
            figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
        pictures[theme] = data_uri(content.getvalue(), "image/svg+xml")
    width, height = (round(96 * inches) for inches in size)
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{pictures["dark"]}">'
        f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="{pictures["light"]}"></picture>'
    )
