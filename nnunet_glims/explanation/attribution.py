"""Grad-CAM (arXiv 1610.02391) and guided Grad-CAM of one patch, as the sum of a region's logits sees it (arXiv 2002.11434).

This is captum's LayerGradCam for all layers and regions after one forward pass, where captum's own takes one for each of
them and, of a layer that returns its skip and what follows from it, leaves out the gradient through the latter. captum's guided
backpropagation changes modules of the class nn.ReLU alone, of which the networks here have next to none.
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
    """Make a network's layers differentiable by hooks: nothing in place, nothing recomputed, no gradients of weights."""
    network.eval().requires_grad_(False)
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
        if getattr(module, "recompute", False):
            module.recompute = False


def feature_map(output: Any, axes: int) -> Tensor | None:
    """A layer's output, of several (a skip and what goes on from it) the first; None where it has not so many axes."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) and first.ndim == axes else None


@contextmanager
def observed(network: nn.Module, names: Sequence[str], see: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Call `see(name, input, output)` whenever one of these modules was run."""
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: see(name, inputs[0], output)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers_of(network: nn.Module, patch: Tensor) -> dict[str, Tensor]:
    """Feature maps (1, c, …) of the layers worth a map, in the order they are computed in.

    These are the stages and blocks right below the network's large parts, without heads, single convolutions and norms.

    Args:
        patch: (1, channels, …) of the patch size.
    """
    found: dict[str, Tensor] = {}

    def see(name: str, _: Any, output: Any) -> None:
        features = feature_map(output, patch.ndim)
        if features is not None:
            found[name] = features

    names = [
        name
        for name, module in network.named_modules()
        if 1 <= name.count(".") <= 2 and any(module.children()) and not name.startswith("decoder.seg_layers.")
    ]
    with observed(network, names, see), torch.no_grad():
        network(patch)
    return found


def logits_and_gates(network: nn.Module, patch: Tensor) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Logits (outputs, …) of a patch, and of each attention gate by its module's name what it multiplied features by.

    Gates are "channel" (1, c, 1, …) and "spatial" (1, c or 1, …).
    """
    gates: dict[str, dict[str, Tensor]] = {}

    def see(name: str, features: Any, _: Any) -> None:
        found = network.get_submodule(name).gates(features)
        if found:
            gates[name] = found

    names = [name for name, module in network.named_modules() if hasattr(type(module), "gates")]
    with observed(network, names, see), torch.no_grad():
        return network(patch)[0], gates


def grad_cam(
    network: nn.Module, patch: Tensor, layers: Sequence[str], outputs: Sequence[int], weights: Tensor
) -> Tensor:
    """Maps (layers, outputs, …) of a patch, not negative; 0 for outputs without weights in it.

    A layer's channels are weighted by the mean gradient of the score, added up, cut off below 0 and interpolated.

    Args:
        network: prepared by `make_differentiable`.
        patch: (1, channels, …).
        layers: names of modules.
        outputs: which of the network's outputs to explain.
        weights: (outputs, …): an output's score is the sum of its logits times these.
    """
    features: dict[str, Tensor] = {}

    def see(name: str, _: Any, output: Any) -> None:
        found = feature_map(output, patch.ndim)
        assert found is not None, name
        features[name] = found

    with observed(network, layers, see), torch.enable_grad():
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
    """The score's gradients by guided backpropagation, magnitudes added up over the input's channels: (outputs, …).

    Arguments as of `grad_cam`.
    """
    patch = patch.detach().requires_grad_()
    with plain_operators(), GuidedBackpropagation(), torch.enable_grad():
        logits = network(patch)[0]
    maps = torch.zeros(len(weights), *patch.shape[2:], device=patch.device)
    for index, score in _scores(logits[list(outputs)], weights):
        maps[index] = torch.autograd.grad(score, patch, retain_graph=True)[0][0].abs().sum(0)
    return maps


class GuidedBackpropagation(TorchFunctionMode):
    """Guided backpropagation (arXiv 1412.6806) through what is computed in this context.

    Behind every ReLU, leaky ReLU and PReLU only positive gradients of positive activations go back. The latter two have
    gradients below 0 as well, which the method, made for ReLUs, leaves out. GELUs (Swin) are left as they are.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in RECTIFIERS and output.requires_grad:
            positive = output.detach() > 0
            output.register_hook(lambda gradient: gradient.clamp(min=0) * positive)
        return output


def interpolated(features: Tensor, size: Sequence[int]) -> Tensor:
    """(1, c, …) of another size, linearly."""
    return F.interpolate(features, tuple(size), mode="trilinear" if features.ndim == 5 else "bilinear")


def _scores(logits: Tensor, weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Place among the outputs and sum of its weighted logits, where any weight is not 0."""
    for index, (output, weight) in enumerate(zip(logits, weights, strict=True)):
        if weight.any():
            yield index, (output * weight).sum()
