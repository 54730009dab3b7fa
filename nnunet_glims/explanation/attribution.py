"""Grad-CAM (arXiv 1610.02391) of a patch, for the sum of a region's logits (arXiv 2002.11434), and guided Grad-CAM.

This computes what captum's LayerGradCam does, but for all layers and regions after one forward pass, where captum needs
a forward pass for each of them. For a layer that returns a skip connection together with the next stage's input, captum
also leaves out the gradient through the latter. captum's guided backpropagation changes modules of the class nn.ReLU
only, which the networks here hardly use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nnunet_glims.kernels.ops import plain_operators

RECTIFIERS = (F.relu, F.leaky_relu, F.prelu, torch.relu, torch.prelu)


def make_differentiable(network: nn.Module) -> None:
    """Prepare a network for `grad_cam`: evaluation mode, no in-place activations, no recomputation, no gradients of weights."""
    network.eval().requires_grad_(False)
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
        if getattr(module, "recompute", False):
            module.recompute = False


def feature_map(output: Any, axes: int) -> Tensor | None:
    """Return the feature map that a layer returned; None where it has another number of axes.

    Of a layer that returns several tensors, such as a skip connection and the next stage's input, this is the first.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) and first.ndim == axes else None


@contextmanager
def observed(network: nn.Module, names: Sequence[str], observe: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Within this context, call `observe(name, input, output)` after each forward pass of one of the named modules."""
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: observe(name, inputs[0], output)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers_of(network: nn.Module, patch: Tensor) -> dict[str, Tensor]:
    """Return the feature maps (1, c, …) of the layers that maps can be made for, by name, in the order of computation.

    These are the stages and blocks directly below encoder and decoder, without segmentation heads, single convolutions
    and norms.

    Args:
        network: the network in evaluation mode.
        patch: (1, channels, …) of the patch size.
    """
    found: dict[str, Tensor] = {}

    def observe(name: str, _: Any, output: Any) -> None:
        features = feature_map(output, patch.ndim)
        if features is not None:
            found[name] = features

    names = [
        name
        for name, module in network.named_modules()
        if 1 <= name.count(".") <= 2 and any(module.children()) and not name.startswith("decoder.seg_layers.")
    ]
    with observed(network, names, observe), torch.no_grad():
        network(patch)
    return found


def logits_and_gates(network: nn.Module, patch: Tensor) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Return the logits (outputs, …) of a patch (1, channels, …), and the values of every attention gate.

    The values are ordered by the name of the gate's module, then by kind: "channel" (1, c, 1, …) and "spatial" (1, c or
    1, …). Features were multiplied by them.
    """
    gates: dict[str, dict[str, Tensor]] = {}

    def observe(name: str, features: Any, _: Any) -> None:
        found = network.get_submodule(name).gates(features)
        if found:
            gates[name] = found

    names = [name for name, module in network.named_modules() if hasattr(type(module), "gates")]
    with observed(network, names, observe), torch.no_grad():
        return network(patch)[0], gates


def grad_cam(
    network: nn.Module, patch: Tensor, layers: Sequence[str], outputs: Sequence[int], weights: Tensor
) -> Tensor:
    """Return the Grad-CAM maps (layers, outputs, …) of a patch, which are never negative.

    The channels of a layer are weighted by the mean gradient of the score and summed; negative values become 0, and the
    result is interpolated to the patch size. The map of an output whose weights are all 0 is 0.

    Args:
        network: prepared by `make_differentiable`.
        patch: (1, channels, …).
        layers: names of modules.
        outputs: indices of the network's outputs to explain.
        weights: (outputs, …). The score of an output is the sum of its logits times these weights.
    """
    features: dict[str, Tensor] = {}

    def observe(name: str, _: Any, output: Any) -> None:
        found = feature_map(output, patch.ndim)
        assert found is not None, name
        features[name] = found

    with observed(network, layers, observe), torch.enable_grad():
        logits = network(patch.detach().requires_grad_())[0]
    size = patch.shape[2:]
    maps = torch.zeros(len(layers), len(weights), *size, device=patch.device)
    for index, score in _scores(logits[list(outputs)], weights):
        gradients = torch.autograd.grad(score, [features[name] for name in layers], retain_graph=True)
        for layer, (name, gradient) in enumerate(zip(layers, gradients, strict=True)):
            importance = gradient.mean(tuple(range(2, gradient.ndim)), keepdim=True)
            cam = F.relu((importance * features[name].detach()).sum(1, keepdim=True))
            maps[layer, index] = interpolated(cam, size)[0, 0]
    return maps


def guided_gradients(network: nn.Module, patch: Tensor, outputs: Sequence[int], weights: Tensor) -> Tensor:
    """Return the magnitude of each score's gradient by guided backpropagation, summed over input channels: (outputs, …).

    The arguments are those of `grad_cam`.
    """
    patch = patch.detach().requires_grad_()
    with plain_operators(), GuidedBackpropagation(), torch.enable_grad():
        logits = network(patch)[0]
    maps = torch.zeros(len(weights), *patch.shape[2:], device=patch.device)
    for index, score in _scores(logits[list(outputs)], weights):
        maps[index] = torch.autograd.grad(score, patch, retain_graph=True)[0][0].abs().sum(0)
    return maps


class GuidedBackpropagation(TorchFunctionMode):
    """Use guided backpropagation (arXiv 1412.6806) for the operations that are called in this context.

    At every ReLU, leaky ReLU and PReLU only positive gradients of positive activations are propagated. Leaky ReLUs and
    PReLUs would propagate gradients of negative activations as well; the method, which was made for ReLUs, leaves these
    out. GELUs (Swin) are not changed.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in RECTIFIERS and output.requires_grad:
            positive = output.detach() > 0
            output.register_hook(lambda gradient: gradient.clamp(min=0) * positive)
        return output


def interpolated(features: Tensor, size: Sequence[int]) -> Tensor:
    """Return features (1, c, …) interpolated linearly to another size."""
    return F.interpolate(features, tuple(size), mode="trilinear" if features.ndim == 5 else "bilinear")


def _scores(logits: Tensor, weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the index and the score of each output that has a weight other than 0."""
    for index, (output, weight) in enumerate(zip(logits, weights, strict=True)):
        if weight.any():
            yield index, (output * weight).sum()
