"""Colours, grey values and figures inside HTML, which the pictures of all pages use."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish; no entry has the colour of a region.
ENTRY_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#7F7F7F")
LABEL_COLOURS = ("#D55E00", "#56B4E9", "#F0E442", "#999999", "#F5C6AA", "#B3E2CD")
MARKERS = ("o", "s", "^", "D", "v")

PLAIN_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "nnunet-glims", "text.parse_math": False}
"""Settings by which text stays text, the same figure gives the same bytes, and $ does not begin a formula."""
_COLOURED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
THEMES = {"light": "#1b1f24", "dark": "#e6e9ec"}
"""Colour of lines and text where the reader's system is set to light or dark."""


def entry_colour(index: int) -> str:
    """Return the colour of the entry with an index, counted from 0."""
    return ENTRY_COLOURS[index % len(ENTRY_COLOURS)]


def entry_marker(index: int) -> str:
    """Return the marker of the entry with an index, counted from 0; it distinguishes entries of the same colour."""
    return MARKERS[index // len(ENTRY_COLOURS) % len(MARKERS)]


def label_colour(label: int) -> str:
    """Return the colour of a label; labels count from 1."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]


def grey(image: np.ndarray) -> np.ndarray:
    """Return an image scaled to values from 0 to 1; the brightest 0.5 % of the non-zero voxels become 1."""
    top = np.percentile(image[image != 0], 99.5) if image.any() else 1
    return np.clip(image / top, 0, 1)


def listed(names: Iterable[str]) -> str:
    """Return names as a list in words, such as "A, B and C"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def data_uri(content: bytes, kind: str) -> str:
    """Return a data URI for the src of a picture; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def svg(draw: Callable[[Figure], None], size: tuple[float, float], alt: str) -> str:
    """Return a figure as an HTML element <picture> with two SVG images, for light and for dark pages.

    Args:
        draw: draws into the figure that it is given.
        size: width and height in inches.
        alt: text for readers who do not see the picture.
    """
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
