"""One self-contained HTML page that compares networks: table, learning curves, overlays on some cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.regions import Regions, short
from nnunet_glims.files import write_text
from nnunet_glims.report.drawing import ENTRY_COLOURS, entry_colour, grey, label_colour, listed, png
from nnunet_glims.report.telling import TELLING_CHANNELS

MISSING = "–"

LINE_MARKERS = ("", "o", "s", "^", "D")


@dataclass
class NetworkResult:
    """What is known of one trained network. None, NaN or a missing entry is shown as "–".

    name, trainer: as shown to the reader, and the nnU-Net trainer class.
    parameters: number of trainable parameters; gmac: 10^9 multiply-accumulates for one patch.
    minutes: wall-clock minutes of training.
    curves: one value per epoch in each of the lists 'train_losses', 'val_losses' and 'mean_fg_dice', as
        nnU-Net logs them; fewer lists are fine.
    dice: case -> region -> Dice, 0 to 1.
    predictions: case -> label map on the grid of the truth.
    """

    name: str
    trainer: str
    parameters: int | None = None
    gmac: float | None = None
    minutes: float | None = None
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    dice: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    predictions: Mapping[str, Path] = field(default_factory=dict)


@dataclass
class CaseImages:
    """A case to show: image files by channel name and the true label map. FLAIR and T1ce are shown, or the first two."""

    name: str
    channels: Mapping[str, Path]
    truth: Path


@dataclass
class DemoResults:
    """Content of the page.

    title: heading; description: one paragraph on what was run; machine: processor, memory, GPU in words.
    command: the command line that gives this page.
    regions: name -> labels it is made of, the largest first.
    networks: in the order of the table; cases: those to show as pictures, two or three.
    """

    title: str
    description: str
    machine: str
    command: str
    regions: Regions
    networks: list[NetworkResult]
    cases: list[CaseImages] = field(default_factory=list)


def write_report(out_html: Path, results: DemoResults) -> Path:
    """Write the page to `out_html` and return that path. Nothing is written if a picture cannot be made.

    Raises UsageError if there is no network, two have the same name, a file of a case is not there,
    or the files of a case differ in shape.
    """
    names = [network.name for network in results.networks]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"cannot report on the networks {names}: give one or more, each with its own name")
    page = _page(results)
    out_html = Path(out_html)
    out_html.parent.mkdir(parents=True, exist_ok=True)
    write_text(out_html, page)
    return out_html


def _page(results: DemoResults) -> str:
    title = escape(results.title)
    cases = "\n".join(_case_section(case, results) for case in results.cases)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{files("nnunet_glims.report").joinpath("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{escape(results.description)}</p>
<p class="note">Machine: {escape(results.machine)}<br>Command: <code>{escape(results.command)}</code></p>
</header>
<main>
<section>
<h2>Networks</h2>
{_table(results.networks, results.regions)}
</section>
<section>
<h2>Learning curves</h2>
{_curves_figure(results.networks)}
</section>
{_cases_section(cases, results.regions)}
</main>
</body>
</html>
"""


def _table(networks: list[NetworkResult], regions: Regions) -> str:
    head = ["Network", "Parameters", "GMAC", "Training", "Epochs"]
    head += [f"Dice {escape(short(region))}" for region in regions]
    rows = "\n".join(
        "<tr>"
        f'<th scope="row">{escape(network.name)}<br>'
        f"<small><code>{escape(network.trainer)}</code></small></th>"
        f"<td>{_number(network.parameters, '.2f', ' M', scale=1e-6)}</td>"
        f"<td>{_number(network.gmac, '.1f')}</td>"
        f"<td>{_number(network.minutes, '.1f', ' min')}</td>"
        f"<td>{_epochs(network)}</td>"
        + "".join(f"<td>{_number(_mean_dice(network, region), '.3f')}</td>" for region in regions)
        + "</tr>"
        for network in networks
    )
    cases = len({case for network in networks for case in network.dice})
    abbreviations = "".join(f"{short(region)}: {region.replace('_', ' ')}. " for region in regions if short(region) != region)
    return f"""<div class="scroll" role="region" aria-label="Networks compared" tabindex="0">
<table>
<thead><tr>{"".join(f'<th scope="col">{name}</th>' for name in head)}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<p class="note">Dice: mean over {cases} case{"" if cases == 1 else "s"}, those without a value left out.
{escape(abbreviations)}GMAC: billions of multiply-accumulates for one patch.
{MISSING} not measured.</p>"""


def _number(value: float | None, spec: str, unit: str = "", scale: float = 1) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{scale * value:{spec}}{unit}"


def _epochs(network: NetworkResult) -> str:
    epochs = max((len(values) for values in network.curves.values()), default=0)
    return str(epochs) if epochs else MISSING


def _mean_dice(network: NetworkResult, region: str) -> float | None:
    values = [dice.get(region) for dice in network.dice.values()]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _curves_figure(networks: list[NetworkResult]) -> str:
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss_axes, dice_axes = figure.subplots(1, 2)
    for index, network in enumerate(networks):
        line = {
            "color": entry_colour(index),
            "marker": LINE_MARKERS[index // len(ENTRY_COLOURS) % len(LINE_MARKERS)],
            "markersize": 3,
        }
        curves = network.curves
        _draw_curve(loss_axes, curves.get("train_losses"), label=f"{network.name}, training", **line)
        _draw_curve(loss_axes, curves.get("val_losses"), label=f"{network.name}, validation", ls="--", **line)
        _draw_curve(dice_axes, curves.get("mean_fg_dice"), label=network.name, **line)
    loss_axes.set_ylabel("loss")
    dice_axes.set_ylabel("pseudo Dice")
    dice_axes.set_ylim(0, 1)
    for axes in (loss_axes, dice_axes):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
        else:
            axes.text(0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes)
    names = listed(network.name for network in networks)
    alt = f"Training and validation loss, and pseudo Dice, over epochs for {names}"
    return f"""<figure>
<div class="scroll" role="region" aria-label="Learning curves" tabindex="0">{png(figure, alt, dpi=110)}</div>
<figcaption>Left: loss, solid for training, dashed for validation. Right: nnU-Net's pseudo Dice on validation
patches, mean over regions; the table has the Dice of whole cases.</figcaption>
</figure>"""


def _draw_curve(axes, values: Sequence[float] | None, **style) -> None:
    if values:
        axes.plot(range(1, len(values) + 1), values, **style)


def _cases_section(cases: str, regions: Regions) -> str:
    if not cases:
        return ""
    legend = "\n".join(
        f'<li><span class="chip" style="background:{label_colour(label)}"></span>'
        f"label {label}: {escape(listed(short(region) for region, labels in regions.items() if label in labels))}</li>"
        for label in sorted({label for labels in regions.values() for label in labels})
    )
    outlines = [f"{style} {escape(region.replace('_', ' '))}" for region, style in _outlined(regions)]
    return f"""<section>
<h2>Cases</h2>
<p>The axial slice with most foreground, seen from below as radiologists do: the patient's left is on the right.
White lines outline the truth: {listed(outlines)}.</p>
<ul class="legend">
{legend}
</ul>
{cases}
</section>"""


def _outlined(regions: Regions) -> list[tuple[str, str]]:
    """The regions to outline: the largest, and the next where it lies inside."""
    largest, *others = regions
    nested = others[:1] if others and set(regions[others[0]]) < set(regions[largest]) else []
    return [(largest, "solid"), *((region, "dashed") for region in nested)]


def _case_section(case: CaseImages, results: DemoResults) -> str:
    networks, regions = results.networks, results.regions
    truth, aspect = _load(case.truth, f"truth of case {case.name}")
    truth = truth.astype(int)
    shown = [name for name in TELLING_CHANNELS if name in case.channels] or list(case.channels)[:2]
    channels = {name: _channel(case, name, truth.shape) for name in shown}
    predictions = {network.name: _prediction(case, network, truth.shape) for network in networks}
    title = escape(case.name)
    alt = (
        f"{listed(shown)} of case {case.name}: the plain slice, then with the regions of "
        f"{listed(['the truth', *predictions])} laid over"
    )
    dice = "; ".join(f"{escape(network.name)} {_dice_text(network, case.name, regions)}" for network in networks)
    image = png(_overlay_figure(channels, truth, predictions, aspect, regions), alt, dpi=110)
    return f"""<figure>
<h3>{title}</h3>
<div class="scroll" role="region" aria-label="Case {title}" tabindex="0">{image}</div>
<figcaption>Dice of {title}: {dice}.</figcaption>
</figure>"""


def _dice_text(network: NetworkResult, case: str, regions: Regions) -> str:
    dice = network.dice.get(case, {})
    return ", ".join(f"{escape(short(region))} {_number(dice.get(region), '.3f')}" for region in regions)


def _channel(case: CaseImages, name: str, shape: tuple[int, ...]) -> np.ndarray:
    image, _ = _load(case.channels[name], f"{name} of case {case.name}")
    _check_shape(image, shape, f"{name} of case {case.name}")
    return image


def _prediction(case: CaseImages, network: NetworkResult, shape: tuple[int, ...]) -> np.ndarray | None:
    if case.name not in network.predictions:
        return None
    what = f"prediction of {network.name} for case {case.name}"
    prediction, _ = _load(network.predictions[case.name], what)
    _check_shape(prediction, shape, what)
    return prediction.astype(int)


def _load(path: Path, what: str) -> tuple[np.ndarray, float]:
    """Voxels turned to x right, y front, z top, and the voxels' height over their width in an axial slice."""
    if not Path(path).is_file():
        raise UsageError(f"{what} is not at {path}: predict it again, or leave it out of the report")
    image = nibabel.as_closest_canonical(nibabel.load(path))
    width, height = image.header.get_zooms()[:2]
    return np.asarray(image.dataobj), float(height / width)


def _check_shape(image: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    if image.shape != shape:
        raise UsageError(f"{what} has shape {image.shape}, the truth {shape}: give files on the same grid")


def _overlay_figure(
    channels: Mapping[str, np.ndarray],
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray | None],
    aspect: float,
    regions: Regions,
) -> Figure:
    """A row per channel; columns: the plain slice, the truth, each prediction (None if there is none)."""
    overlays = [("truth", truth), *predictions.items()]
    z = int((truth > 0).sum((0, 1)).argmax())
    box = _bounding_box(next(iter(channels.values()))[:, :, z] != 0)
    width, height = box[0].stop - box[0].start, (box[1].stop - box[1].start) * aspect
    columns = 1 + len(overlays)
    inches = 2.1
    size = (columns * inches, len(channels) * inches * height / width + 0.45)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.06, wspace=0, hspace=0)
    figure = Figure(figsize=size, facecolor="black", layout=layout)
    axes = figure.subplots(len(channels), columns, squeeze=False)
    for row, (name, channel) in enumerate(channels.items()):
        ground = grey(channel[:, :, z][box])
        _draw_panel(axes[row, 0], ground, None, aspect)
        axes[row, 0].text(0.02, 0.98, name, color="white", va="top", transform=axes[row, 0].transAxes)
        for panel, (title, labels) in zip(axes[row, 1:], overlays, strict=True):
            _draw_panel(panel, ground, None if labels is None else labels[:, :, z][box], aspect)
            _draw_outlines(panel, truth[:, :, z][box], regions)
            if labels is None:
                panel.text(0.5, 0.02, "no prediction", color="white", ha="center", transform=panel.transAxes)
            if row == 0:
                panel.set_title(title, color="white", fontsize=11, pad=3)
    return figure


def _bounding_box(mask: np.ndarray, margin: int = 2) -> tuple[slice, ...]:
    """Slices around the nonzero part of a 2D mask; all of it if it is empty."""
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    return tuple(
        slice(max(where.min() - margin, 0), min(where.max() + 1 + margin, n))
        for where, n in zip(np.nonzero(mask), mask.shape, strict=True)
    )


def _draw_panel(axes, ground: np.ndarray, labels: np.ndarray | None, aspect: float) -> None:
    picture = np.repeat(ground[..., None], 3, axis=2)
    if labels is not None:
        for label in np.unique(labels[labels > 0]):
            inside = labels == label
            picture[inside] = 0.45 * picture[inside] + 0.55 * np.array(to_rgb(label_colour(int(label))))
    axes.imshow(picture.swapaxes(0, 1), origin="lower", aspect=aspect, interpolation="nearest")
    axes.set_xlim(len(ground) - 0.5, -0.5)
    axes.set_axis_off()


def _draw_outlines(axes, truth: np.ndarray, regions: Regions) -> None:
    for region, style in _outlined(regions):
        inside = np.isin(truth, list(regions[region]))
        if inside.any():
            outline = axes.contour(inside.T, levels=[0.5], colors="white", linewidths=0.9, linestyles=style)
            # Edema is nearly white on FLAIR: the line needs a dark border there.
            outline.set_path_effects([withStroke(linewidth=2, foreground="black")])
