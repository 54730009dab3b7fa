"""Draw maps as pictures, and write the page that shows them: image, truth, prediction, the map of each target, all maps."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from nnunet_glims.files import write_bytes, write_text
from nnunet_glims.report.cases import PREFERRED_CHANNELS
from nnunet_glims.report.drawing import data_uri, grey, label_colour
from nnunet_glims.report.slices import CT_WINDOW, oriented, shown_part

ROWS = 3
"""Number of slices in a picture."""
PAGE = "index.html"
_FORBIDDEN = r'[\x00-\x1f<>:"/\\|?*%]'
"""Characters that file names cannot have on Linux, macOS or Windows, and the one that they are written with."""


@dataclass(frozen=True)
class DrawnCase:
    """An explained case and its files.

    Attributes:
        name: name of the case.
        images: one image file per channel.
        channels: names of the channels.
        folder: folder that holds the maps and the predicted label map.
        truth: the true label map; None where there is none.
    """

    name: str
    images: Sequence[Path]
    channels: Sequence[str]
    folder: Path
    truth: Path | None


def map_name(layer: str, target: str) -> str:
    """Return the name of a map's file, without its ending.

    Characters that file names cannot have, such as the slash of "oedema/infiltration", are written as in web addresses: %2F.
    """
    return f"{layer}_{re.sub(_FORBIDDEN, lambda found: f'%{ord(found[0]):02X}', target)}"


def draw_panel(case: DrawnCase, layer: str, targets: Mapping[str, Sequence[int]]) -> bytes:
    """Draw a picture (PNG) with a row for each of `ROWS` axial slices through the labelled voxels, seen from below.

    Args:
        case: the case and its files.
        layer: name of the layer whose maps are drawn.
        targets: name of each target -> its labels.
    """
    channel = next((name for name in PREFERRED_CHANNELS if name in case.channels), case.channels[0])
    image, spacing = oriented(case.images[list(case.channels).index(channel)])
    labels = {"truth": case.truth, "prediction": case.folder / "prediction.nii.gz"}
    labelled = {name: oriented(path)[0] for name, path in labels.items() if path is not None}
    maps = [oriented(case.folder / f"{map_name(layer, target)}.nii.gz")[0] for target in targets]
    foreground = np.any([voxels > 0 for voxels in labelled.values()], axis=0)
    slices, rows, columns = shown_part(foreground)
    chosen = slices[np.linspace(0, len(slices) - 1, ROWS + 2).round().astype(int)[1:-1]]
    part = np.ix_(chosen, np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop))
    if channel == "CT":
        ground = np.clip((image[part] - CT_WINDOW[0]) / (CT_WINDOW[1] - CT_WINDOW[0]), 0, 1)
    else:
        ground = grey(image[part].astype(float))
    ground = np.repeat(ground[..., None], 3, axis=-1)
    one_each = all(len(of) == 1 for of in targets.values())  # then maps share their labels' colours
    numbers = [of[0] if one_each else place for place, of in enumerate(targets.values(), start=1)]
    colours = [to_rgb(label_colour(number)) for number in numbers]
    pictures = {channel: ground}
    pictures |= {name: _with_labels(ground, voxels[part]) for name, voxels in labelled.items()}
    pictures |= {target: _with_map(ground, found[part]) for target, found in zip(targets, maps, strict=True)}
    if len(targets) > 1:
        pictures["all maps"] = _with_all(ground, [found[part] for found in maps], colours)

    height = (rows.stop - rows.start) * spacing[1] / ((columns.stop - columns.start) * spacing[0])
    with matplotlib.rc_context({"text.parse_math": False}):
        tight = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
        figure = Figure(figsize=(1.5 * len(pictures), 0.3 + 1.5 * height * len(chosen)), layout=tight)
        panels = figure.subplots(len(chosen), len(pictures), squeeze=False)
        for column, (title, stacked) in enumerate(pictures.items()):
            panels[0, column].set_title(title, fontsize=9, color=_title_colour(title, targets, colours))
            for row, picture in enumerate(stacked):
                panels[row, column].imshow(picture, aspect=spacing[1] / spacing[0], interpolation="nearest")
        for panel in panels.flat:
            panel.set_axis_off()
        return _png(figure)


def _title_colour(title: str, targets: Mapping[str, Sequence[int]], colours: Sequence[Any]) -> Any:
    return tuple(0.7 * part for part in colours[list(targets).index(title)]) if title in targets else "black"


def _with_labels(ground: np.ndarray, labels: np.ndarray) -> np.ndarray:
    picture = ground.copy()
    for label in np.unique(labels[labels > 0]):
        inside = labels == label
        picture[inside] = 0.4 * picture[inside] + 0.6 * np.array(to_rgb(label_colour(int(label))))
    return picture


def _with_map(ground: np.ndarray, values: np.ndarray) -> np.ndarray:
    strength = np.clip(values, 0, 1)[..., None]
    colours = matplotlib.colormaps["inferno"](strength[..., 0])[..., :3]
    return (1 - 0.8 * strength**0.5) * ground + 0.8 * strength**0.5 * colours


def _with_all(ground: np.ndarray, maps: Sequence[np.ndarray], colours: Sequence[Any]) -> np.ndarray:
    """Return the image with each map in the colour of its target; higher values are more opaque."""
    picture = ground
    for values, colour in zip(maps, colours, strict=True):
        strength = 0.7 * np.clip(values, 0, 1)[..., None]
        picture = (1 - strength) * picture + strength * np.array(colour)
    return picture


def draw_gates(table: pd.DataFrame, path: Path) -> None:
    """Write a picture (PNG) with the mean value over cases of each channel gate, as bars.

    Args:
        table: columns "gate", "channel" and "mean".
        path: file to write.
    """
    means = table.groupby(["gate", "channel"], sort=False)["mean"].mean()
    names = list(dict.fromkeys(table["gate"]))
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(8, 0.3 + 1.1 * len(names)), layout="constrained")
        for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
            values = means[name]
            axes.bar(values.index, values, width=1.0, color=label_colour(2), edgecolor="white", linewidth=0.2)
            axes.set_title(name, fontsize=9, loc="left")
            axes.set_xlim(-0.5, len(values) - 0.5)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        write_bytes(path, _png(figure))


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def write_page(summary: Mapping[str, Any], cases: Sequence[DrawnCase], folder: Path) -> None:
    """Write the pictures of every case and the page that shows them.

    Args:
        summary: the content of explanation.json.
        cases: the explained cases.
        folder: the folder of the explanation.
    """
    panels: dict[str, dict[str, str]] = {}
    for case in cases:
        panels[case.name] = {}
        for layer in summary["layers"]:
            content = draw_panel(case, layer, summary["targets"])
            write_bytes(case.folder / f"{layer}.png", content)
            panels[case.name][layer] = data_uri(content, "image/png")
    gates = folder / "channel_gates.png"
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        (files("nnunet_glims.explanation") / "page.html").read_text(encoding="utf-8"),
    )
    page = template.render(
        summary=summary,
        style=Markup((files("nnunet_glims.report") / "page.css").read_text(encoding="utf-8")),
        panels=panels,
        map_name=map_name,
        gates=data_uri(gates.read_bytes(), "image/png") if gates.exists() else None,
        spatial_gates={case.name: sorted(path.name for path in case.folder.glob("gate_*.nii.gz")) for case in cases},
    )
    write_text(folder / PAGE, page)
