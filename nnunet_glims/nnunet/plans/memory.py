"""Count the memory of a training step without computing anything.

A step runs on the meta device, with tensors without content: forward pass, nnU-Net's loss, and backward pass with all
recomputations. Every block of memory is counted from the operation that allocates it until nothing refers to it. Torch has
no autocast for the meta device, so the rules of autocast on GPUs are imitated.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from nnunet_glims.architectures.base import SegmentationNetwork
from nnunet_glims.kernels.ops import meta_stands_for
from nnunet_glims.training.precision import chosen, resolve
from nnunet_glims.training.recipes import Recipe

GIB = 2**30
CUDA_CONTEXT = 0.75 * GIB
"""Bytes of CUDA's context with the code and workspaces of torch, cuDNN and cuBLAS; assumed, not measured."""
CUDA_FRAGMENTS = 0.08
"""Memory that torch's allocator reserves in addition to that of tensors, as a fraction of it; assumed, not measured."""

_HALVED = {"conv3d", "conv_transpose3d", "linear", "matmul", "__matmul__", "bmm", "prelu"}
_KEPT_FULL = {"group_norm", "layer_norm", "instance_norm", "softmax", "log_softmax", "binary_cross_entropy_with_logits"}


@dataclass(frozen=True)
class StepMemory:
    """The memory of a training step in bytes, by part.

    Attributes:
        weights: parameters and buffers.
        moments: the optimiser's state for the parameters.
        kept: the batch, and the activations that the forward pass keeps for the backward pass.
        backward: what the backward pass needs in addition at its peak: gradients and recomputed activations.
        overhead: what the device itself needs: context, workspaces, allocator.
    """

    weights: int
    moments: int
    kept: int
    backward: int
    overhead: int

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return self.weights + self.moments + self.kept + self.backward + self.overhead


def in_half_precision(recipe: Recipe, device: str) -> bool:
    """Return whether a recipe trains in bf16 or fp16 on a type of device; NNUNET_GLIMS_PRECISION is taken into account."""
    return resolve(chosen(recipe.precision), device) != "fp32"


def training_step(
    network: SegmentationNetwork,
    patch_size: Sequence[int],
    batch_size: int,
    recipe: Recipe,
    device: str,
    regions: bool = False,
    kernels: bool | None = None,
) -> StepMemory:
    """Count the memory of a training step on a type of device, "cuda" or "cpu", in the recipe's precision.

    Args:
        network: the network, which is moved to the meta device and cannot be used afterwards.
        patch_size: voxels (D, H, W).
        batch_size: number of patches in a step.
        recipe: the recipe, of which optimiser, precision and deep supervision matter here.
        device: type of the device; for "cuda" an overhead is added.
        regions: whether overlapping regions are trained instead of labels.
        kernels: whether the device has the package's kernels; None assumes those of this machine.
    """
    halved = in_half_precision(recipe, device)
    network = network.to("meta").train()
    network.decoder.deep_supervision = recipe.deep_supervision
    live = _Live()
    with meta_stands_for(device, kernels), live, _Autocast() if halved else nullcontext():
        live.count([*network.parameters(), *network.buffers()])
        weights = live.now
        x = torch.empty(batch_size, network.input_channels, *patch_size, device="meta")
        outputs = network(x)
        loss = nnunet_loss(outputs if isinstance(outputs, list) else [outputs], regions)
        del outputs
        kept = live.now - weights
        # Tensor.backward would leave the mode that imitates autocast, which recomputations need
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    gradients = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    moments = gradients * (1 if recipe.optimizer == "SGD" else 2)
    # The optimiser runs when activations are freed; on GPUs it allocates one more tensor for each gradient.
    highest = max(live.peak, weights + gradients * (2 if device == "cuda" else 1))
    overhead = int(CUDA_CONTEXT + CUDA_FRAGMENTS * (highest + moments)) if device == "cuda" else 0
    return StepMemory(weights, moments, kept, highest - weights - kept, overhead)


def nnunet_loss(outputs: Sequence[Tensor], regions: bool) -> Tensor:
    """Return the sum of nnU-Net's loss over all heads, with targets of arbitrary content."""
    from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": regions}
    loss: nn.Module
    if regions:
        loss = DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    total = outputs[0].new_zeros(())
    for out in outputs:
        channels, dtype = (out.shape[1], torch.bool) if regions else (1, torch.int16)
        total = total + loss(out, out.new_zeros((len(out), channels, *out.shape[2:]), dtype=dtype))
    return total


class _Live(TorchDispatchMode):
    """Counts the bytes of all blocks of memory that operations allocate, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def count(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            block = tensor.untyped_storage()
            if block._cdata not in self._known:
                self._known.add(block._cdata)
                self.now += block.nbytes()
                weakref.finalize(block, self._gone, block._cdata, block.nbytes())
        self.peak = max(self.peak, self.now)

    def _gone(self, address: int, size: int) -> None:
        self._known.remove(address)
        self.now -= size

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        self.count(tree_iter(result))
        return result


class _Autocast(TorchFunctionMode):
    """Casts as autocast does on GPUs. Attention is left out: our networks compute it in float32, outside of autocast."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        name = getattr(function, "__name__", "")
        if name in _HALVED | _KEPT_FULL:
            dtype = torch.float16 if name in _HALVED else torch.float32

            def cast(value: Any) -> Any:
                return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

            arguments, options = tree_map(cast, (arguments, options))
        return function(*arguments, **(options or {}))
