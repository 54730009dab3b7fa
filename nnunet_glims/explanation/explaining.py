"""nnU-Net's model folder and images -> a folder of maps, pictures and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nnunet_glims import __version__
from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.regions import of_dataset, short
from nnunet_glims.explanation import pictures, sanity
from nnunet_glims.explanation.attribution import (
    grad_cam,
    guided_gradients,
    interpolated,
    layers_of,
    logits_and_gates,
    make_differentiable,
)
from nnunet_glims.explanation.volumes import ImagePipeline, NetworkInput
from nnunet_glims.export.cases import InputCase, find_input_cases
from nnunet_glims.export.runner import read_image
from nnunet_glims.files import check_new, new_folder, write_json, write_text
from nnunet_glims.geometry import Geometry, times
from nnunet_glims.images import read_label_map, write_image
from nnunet_glims.nnunet.checkpoints import FINAL, load_checkpoint, load_weights, trained_folds
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.validation import nearest

METHODS = ("gradcam", "guided-gradcam")
SUMMARY = "explanation.json"
GATES = "channel_gates.csv"
ENDING = ".nii.gz"

Tell = Callable[[Sequence[Any], str], Iterable[Any]]
"""Iterates over its first argument and shows how far it is; the second says what is done."""


@dataclass(frozen=True)
class ExplanationRequest:
    """What to explain and how.

    Attributes:
        targets: names of regions or labels of dataset.json; empty for all.
        layers: names of layers, or "all"; empty for one, see `default_layer`.
        method: one of `METHODS`.
        fold: such as "0" or "all".
        checkpoint: name of the file in the fold's folder.
        sanity: whether to check the maps, see `sanity`.
        trust: load a checkpoint that holds more than numbers.
        device: cpu, cuda or mps; None for CUDA where there is.

    Raises:
        UsageError: when it is made, where the method or device is unknown.
    """

    targets: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    method: str = METHODS[0]
    fold: str = "0"
    checkpoint: str = FINAL
    sanity: bool = False
    trust: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"--method {self.method} is unknown: choose {' or '.join(METHODS)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("-device cuda: torch finds no GPU here: use -device cpu")


@dataclass(frozen=True)
class ExplanationTarget:
    """A region or label: its name, its place among the network's outputs, its labels."""

    name: str
    output: int
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer whose maps can be drawn: module's name, channels, voxels (z, y, x) at the patch size."""

    name: str
    channels: int
    size: tuple[int, ...]


class Explainer:
    """A trained network and what of it is to be explained.

    Raises:
        UsageError: unknown folds, targets or layers; checkpoints that are damaged, or hold more than numbers and no trust.
    """

    def __init__(self, folder: Path, request: ExplanationRequest = ExplanationRequest()):
        self.model = ModelFolder(folder)
        (fold,) = trained_folds(self.model, [request.fold], request.checkpoint)
        path = folder / f"fold_{fold}" / request.checkpoint
        checkpoint = load_checkpoint(path, request.trust)
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = ImagePipeline(self.model, torch.device(request.device or usual))
        self.network = self.new_network()
        load_weights(self.network, checkpoint, path)
        channels = self.model.dataset_json["channel_names"]
        self.channels = [channels[number] for number in sorted(channels, key=int)]
        patch = torch.zeros(1, len(self.channels), *self.pipeline.patch_size, device=self.pipeline.device)
        self.layers = [
            Layer(name, features.shape[1], tuple(features.shape[2:]))
            for name, features in layers_of(self.network, patch).items()
        ]
        if any(
            length > side for layer in self.layers for length, side in zip(layer.size, patch.shape[2:], strict=True)
        ):
            raise UsageError(
                f"{folder}: the network pads patches of {times(self.pipeline.patch_size)} voxels, so its maps would not lie "
                "on the image: only networks with a patch size they do not pad can be explained"
            )
        gates = logits_and_gates(self.network, patch)[1]
        self.spatial_gates = [name for name, values in gates.items() if "spatial" in values]
        self.guided = request.method == "guided-gradcam"
        self.targets = _targets(self.model.dataset_json, self.pipeline, request.targets)
        self.chosen = self._chosen(request.layers)

    def new_network(self) -> nn.Module:
        """The model's network with new weights."""
        network = self.model.network()[0]
        if hasattr(network, "precision"):  # ours may carry its own autocast
            network.precision = None
        make_differentiable(network)
        return network.to(self.pipeline.device)

    def _chosen(self, wanted: Sequence[str]) -> list[str]:
        names = [layer.name for layer in self.layers]
        if not wanted:
            return [default_layer(self.layers).name]
        for name in wanted:
            if name not in (*names, "all"):
                raise UsageError(f"--layer {name} is unknown: {nearest(name, names)} (--layers lists them)")
        return names if "all" in wanted else list(dict.fromkeys(wanted))

    def predict(self, data: Tensor, tell: Callable = iter) -> tuple[Tensor, dict[str, list[Tensor]], Tensor]:
        """Logits (outputs, z, y, x); channel gates by name, (c) a window; spatial gates (gates, z, y, x).

        Spatial gates with a map a channel are averaged over channels.
        """
        channel_gates: dict[str, list[Tensor]] = {}
        heads = self.pipeline.labels.num_segmentation_heads

        def compute(patch: Tensor, _: Tensor) -> Tensor:
            logits, gates = logits_and_gates(self.network, patch)
            for name, values in gates.items():
                if "channel" in values:
                    channel_gates.setdefault(name, []).append(values["channel"].flatten().cpu())
            maps = [gates[name]["spatial"].mean(1, keepdim=True) for name in self.spatial_gates]
            size = patch.shape[2:]
            return torch.cat([logits, *(interpolated(gate, size)[0] for gate in maps)])

        found = self.pipeline.average_windows(data, heads + len(self.spatial_gates), compute, tell)
        return found[:heads], channel_gates, found[heads:]

    def regions(self, logits: Tensor) -> Tensor:
        """Where each target is predicted: (targets, z, y, x) of 0 and 1."""
        outputs = [target.output for target in self.targets]
        if self.pipeline.labels.has_regions:
            return (logits[outputs] > 0).float()
        labels = logits.argmax(0)
        return torch.stack([(labels == output).float() for output in outputs])

    def maps(self, data: Tensor, regions: Tensor, tell: Callable = iter, network: nn.Module | None = None) -> Tensor:
        """Maps (layers, targets, z, y, x) of the chosen layers, of the sum of a target's logits over its region.

        Args:
            data: (channels, z, y, x), preprocessed.
            regions: (targets, z, y, x) of 0 and 1.
            network: another one than the trained one.
        """
        outputs = [target.output for target in self.targets]
        shape = (len(self.chosen), len(outputs))
        used = self.network if network is None else network

        def compute(stacked: Tensor, part: Tensor) -> Tensor:
            patch, weights = stacked[:, : len(data)], stacked[0, len(data) :] * part
            found = grad_cam(used, patch, self.chosen, outputs, weights)
            if self.guided and weights.any():
                found = found * guided_gradients(used, patch, outputs, weights)
            return found.flatten(0, 1)

        averaged = self.pipeline.average_windows(torch.cat([data, regions]), shape[0] * shape[1], compute, tell)
        return averaged.unflatten(0, shape)


def default_layer(layers: Sequence[Layer]) -> Layer:
    """The layer that is explained where none is named: the last one of a quarter of the finest resolution or less."""
    finest = max(np.prod(layer.size) ** (1 / len(layer.size)) for layer in layers)
    coarse = [layer for layer in layers if np.prod(layer.size) ** (1 / len(layer.size)) <= finest / 4 + 1e-6]
    return (coarse or layers)[-1]


def _targets(dataset_json: Mapping[str, Any], volumes: ImagePipeline, wanted: Sequence[str]) -> list[ExplanationTarget]:
    labels = volumes.labels
    known = {
        name: ExplanationTarget(short(name), place if labels.has_regions else labels.all_labels.index(of[0]), of)
        for place, (name, of) in enumerate(of_dataset(dataset_json).items())
    }
    by_name = {key.lower(): target for name, target in known.items() for key in (name, target.name)}
    for name in wanted:
        if name.lower() not in by_name:
            raise UsageError(f"--target {name} is unknown: {nearest(name, [target.name for target in known.values()])}")
    return list(dict.fromkeys(by_name[name.lower()] for name in wanted)) or list(known.values())


def explain(
    folder: Path,
    inputs: Sequence[Path],
    out: Path,
    request: ExplanationRequest = ExplanationRequest(),
    truth: Path | None = None,
    overwrite: bool = False,
    tell: Tell = lambda windows, _: windows,
) -> dict[str, Any]:
    """Write maps, pictures and a page of cases, or nothing; returns what explanation.json holds.

    Args:
        folder: nnU-Net's model folder.
        inputs: a folder of cases, or the files of their channels.
        out: folder to write; made by a rename when all is done.
        truth: folder of true label maps, shown beside the predicted ones.
        overwrite: replace an explanation that is there.
        tell: shows the progress.

    Raises:
        UsageError: no such model, fold, target, layer, case or true label map; `out` exists.
    """
    check_new(out, overwrite, SUMMARY, "explanation")
    explainer = Explainer(folder, request)
    dataset_json = explainer.model.dataset_json
    cases = find_input_cases(inputs, dataset_json["file_ending"], explainer.channels)
    truths = {case.name: None if truth is None else _truth(truth, case, dataset_json["file_ending"]) for case in cases}
    summary: dict[str, Any] = {
        "version": __version__,
        "model": explainer.model.path.resolve().name,
        "dataset": explainer.model.dataset,
        "fold": request.fold,
        "method": request.method,
        "layers": explainer.chosen,
        "targets": {target.name: list(target.labels) for target in explainer.targets},
        "cases": {},
    }
    gates = []
    with new_folder(out) as unfinished:
        shown = []
        for case in cases:
            inside = unfinished / case.name
            inside.mkdir()
            summary["cases"][case.name], of_case = _explain_case(explainer, case, inside, request.sanity, tell)
            gates += of_case
            shown.append(pictures.DrawnCase(case.name, case.files, explainer.channels, inside, truths[case.name]))
        if gates:
            table = pd.DataFrame(gates)
            write_text(unfinished / GATES, table.to_csv(index=False))
            pictures.draw_gates(table, unfinished / "channel_gates.png")
        write_json(unfinished / SUMMARY, summary)
        pictures.write_page(summary, shown, unfinished)
    return summary


def _truth(folder: Path, case: InputCase, ending: str) -> Path:
    path = folder / f"{case.name}{ending}"
    if not path.is_file():
        raise UsageError(f"{path}: there is no true label map of case {case.name}; leave out --truth, or complete it")
    difference = read_label_map(path).geometry.difference(Geometry.of_file(case.files[0]))
    if difference:
        raise UsageError(f"{path}: {difference} like {case.files[0].name}: is this another case?")
    return path


def _explain_case(
    explainer: Explainer, case: InputCase, folder: Path, check: bool, tell: Tell
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write a case's files; returns its part of the summary and its rows in the table of gates."""
    geometry = read_image(case.files)[1]
    volumes = explainer.pipeline
    image: NetworkInput = volumes.preprocess(case.files)
    data = image.data
    logits, channel_gates, spatial_gates = explainer.predict(
        data, lambda windows: tell(windows, f"{case.name}: predict")
    )
    regions = explainer.regions(logits)
    maps = explainer.maps(data, regions, lambda windows: tell(windows, f"{case.name}: {len(regions)} targets"))
    highest = maps.flatten(2).amax(2)
    maps = _scaled_to_one(maps)

    prediction = volumes.label_map(logits, image.properties)
    write_image(prediction, geometry, folder / f"prediction{ENDING}")
    names = [(layer, target.name) for layer in explainer.chosen for target in explainer.targets]
    files = [*(pictures.map_name(*name) for name in names), *(f"gate_{name}" for name in explainer.spatial_gates)]
    for name, volume in zip(files, [*maps.flatten(0, 1), *spatial_gates], strict=True):
        write_image(volumes.to_image_grid(volume[None], image.properties)[0], geometry, folder / f"{name}{ENDING}")

    found: dict[str, Any] = {
        "predicted_voxels": {
            target.name: int(np.isin(prediction, target.labels).sum()) for target in explainer.targets
        },
        "highest": {
            layer: {target.name: float(value) for target, value in zip(explainer.targets, values, strict=True)}
            for layer, values in zip(explainer.chosen, highest, strict=True)
        },
    }
    if check:
        found["sanity"] = _sanity_checks(explainer, case.name, data, logits, regions, maps, tell)
    rows = [
        {"case": case.name, "gate": name, "channel": channel, "mean": float(mean), "sd": float(sd)}
        for name, values in channel_gates.items()
        for stacked in [torch.stack(values)]
        for channel, (mean, sd) in enumerate(zip(stacked.mean(0), stacked.std(0, correction=0), strict=True))
    ]
    return found, rows


def _scaled_to_one(maps: Tensor) -> Tensor:
    """Each map divided by its highest value, which thereby is 1; maps of nothing stay 0."""
    highest = maps.flatten(2).amax(2)[..., None, None, None]
    return torch.where(highest > 0, maps / highest.clamp(min=torch.finfo(maps.dtype).tiny), 0)


def _sanity_checks(
    explainer: Explainer, case: str, data: Tensor, logits: Tensor, regions: Tensor, maps: Tensor, tell: Tell
) -> dict[str, dict[str, Any]]:
    """Both checks of every map, by layer and target; None where the target is not predicted."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = explainer.new_network()
    of_random = _scaled_to_one(
        explainer.maps(data, regions, lambda windows: tell(windows, f"{case}: random weights"), untrained)
    )
    checks: dict[str, dict[str, Any]] = {}
    for layer, name in enumerate(explainer.chosen):
        checks[name] = {}
        for place, target in enumerate(explainer.targets):

            def predict(changed: Tensor, target=target) -> Tensor:
                what = f"{case}: {target.name} deleted"
                return explainer.predict(changed, lambda windows: tell(windows, what))[0][target.output]

            region, saliency = regions[place], maps[layer, place]
            checks[name][target.name] = (
                {
                    "random_weights": sanity.similarity(saliency, of_random[layer, place]),
                    "deletion": sanity.deletion(data, saliency, region, logits[target.output], predict),
                }
                if region.any()
                else None
            )
    return checks
