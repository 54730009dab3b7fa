"""A trained network, with the layers and targets to explain, and the maps of one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.regions import short
from nnunet_glims.explanation.attribution import (
    grad_cam,
    guided_gradients,
    interpolated,
    layers_of,
    logits_and_gates,
    make_differentiable,
)
from nnunet_glims.explanation.volumes import ImagePipeline
from nnunet_glims.geometry import times
from nnunet_glims.nnunet.checkpoints import FINAL, load_checkpoint, load_weights, trained_folds
from nnunet_glims.nnunet.folders import regions_of
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.processes import Progress, quietly
from nnunet_glims.validation import nearest

METHODS = ("gradcam", "guided-gradcam")


@dataclass(frozen=True)
class ExplanationRequest:
    """What to explain and how.

    Attributes:
        targets: names of regions or labels of dataset.json; empty for all.
        layers: names of layers, or "all"; empty for one layer, see `default_layer`.
        method: one of `METHODS`.
        fold: name of the fold, such as "0" or "all".
        checkpoint: name of the checkpoint's file in the fold's folder.
        sanity: whether to check the maps, see the module `sanity`.
        trust: whether to load a checkpoint that holds more than numbers.
        device: "cpu", "cuda" or "mps"; None for CUDA where there is a GPU, else the CPU.

    Raises:
        UsageError: on construction, where the method is unknown or there is no GPU for "cuda".
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
    """A region or label to explain.

    Attributes:
        name: short name, such as "WT".
        output: index of the network's output.
        labels: the labels that the region consists of.
    """

    name: str
    output: int
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer that maps can be made for.

    Attributes:
        name: name of its module.
        channels: number of channels.
        size: voxels (z, y, x) at the patch size.
    """

    name: str
    channels: int
    size: tuple[int, ...]


class Explainer:
    """A trained network, with the layers and targets to explain.

    Args:
        folder: nnU-Net's model folder.
        request: what to explain and how.

    Raises:
        UsageError: an unknown fold, target or layer; a checkpoint that is damaged, or that holds more than numbers
            while `request.trust` is not set; a network that pads its patches.
    """

    def __init__(self, folder: Path, request: ExplanationRequest = ExplanationRequest()):
        self.model = ModelFolder(folder, request.trust)
        (fold,) = trained_folds(self.model, [request.fold], request.checkpoint)
        path = folder / f"fold_{fold}" / request.checkpoint
        checkpoint = load_checkpoint(path, request.trust)
        device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline = ImagePipeline(self.model, torch.device(device))
        self.network = self.new_network()
        load_weights(self.network, checkpoint, path)
        self.channels = self.model.channels
        patch = torch.zeros(1, len(self.channels), *self.pipeline.patch_size, device=self.pipeline.device)
        try:
            features_of = layers_of(self.network, patch)
        except (
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # a TypeError where an argument in the plans has another type
            reason = str(error).strip().splitlines()[0]
            size = times(self.pipeline.patch_size)
            raise UsageError(
                f"{path}: the network cannot compute the plans' patch of {size} voxels ({reason})"
            ) from None
        self.layers = [
            Layer(name, features.shape[1], tuple(features.shape[2:])) for name, features in features_of.items()
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
        """Return the model's network with random weights, prepared for Grad-CAM, on the device."""
        network = self.model.network()[0]
        if hasattr(network, "precision"):  # networks of this package may enable autocast themselves
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

    def predict(
        self, data: Tensor, progress: Progress = quietly, title: str = ""
    ) -> tuple[Tensor, dict[str, list[Tensor]], Tensor]:
        """Predict a preprocessed image and record the attention gates.

        Args:
            data: (channels, z, y, x), preprocessed.
            progress, title: show how many windows are done.

        Returns:
            The logits (outputs, z, y, x); the values of each channel gate by name, (c) for each window; the spatial
            gates (gates, z, y, x), averaged over channels where a gate has a map for each channel.
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

        found = self.pipeline.average_windows(data, heads + len(self.spatial_gates), compute, progress, title)
        return found[:heads], channel_gates, found[heads:]

    def regions(self, logits: Tensor) -> Tensor:
        """Return 1 where a target is predicted and 0 elsewhere: (targets, z, y, x), from logits (outputs, z, y, x)."""
        outputs = [target.output for target in self.targets]
        if self.pipeline.labels.has_regions:
            return (logits[outputs] > 0).float()
        labels = logits.argmax(0)
        return torch.stack([(labels == output).float() for output in outputs])

    def maps(
        self,
        data: Tensor,
        regions: Tensor,
        progress: Progress = quietly,
        title: str = "",
        network: nn.Module | None = None,
    ) -> Tensor:
        """Return the maps (layers, targets, z, y, x) of the chosen layers, whose score is the sum of logits over the region.

        Args:
            data: (channels, z, y, x), preprocessed.
            regions: (targets, z, y, x) of 0 and 1.
            progress, title: show how many windows are done.
            network: a network to use instead of the trained one.
        """
        outputs = [target.output for target in self.targets]
        shape = (len(self.chosen), len(outputs))
        used = self.network if network is None else network

        def compute(stacked: Tensor, share: Tensor) -> Tensor:
            patch, weights = stacked[:, : len(data)], stacked[0, len(data) :] * share
            found = grad_cam(used, patch, self.chosen, outputs, weights)
            if self.guided and weights.any():
                found = found * guided_gradients(used, patch, outputs, weights)
            return found.flatten(0, 1)

        averaged = self.pipeline.average_windows(
            torch.cat([data, regions]), shape[0] * shape[1], compute, progress, title
        )
        return averaged.unflatten(0, shape)


def default_layer(layers: Sequence[Layer]) -> Layer:
    """Return the layer that is explained where none is named: the last one of at most a quarter of the finest resolution."""
    finest = max(np.prod(layer.size) ** (1 / len(layer.size)) for layer in layers)
    coarse = [layer for layer in layers if np.prod(layer.size) ** (1 / len(layer.size)) <= finest / 4 + 1e-6]
    return (coarse or layers)[-1]


def _targets(
    dataset_json: Mapping[str, Any], pipeline: ImagePipeline, wanted: Sequence[str]
) -> list[ExplanationTarget]:
    labels = pipeline.labels
    known = {
        name: ExplanationTarget(short(name), place if labels.has_regions else labels.all_labels.index(of[0]), of)
        for place, (name, of) in enumerate(regions_of(dataset_json).items())
    }
    by_name = {key.lower(): target for name, target in known.items() for key in (name, target.name)}
    for name in wanted:
        if name.lower() not in by_name:
            raise UsageError(f"--target {name} is unknown: {nearest(name, [target.name for target in known.values()])}")
    return list(dict.fromkeys(by_name[name.lower()] for name in wanted)) or list(known.values())
