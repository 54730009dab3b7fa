"""The memory of a training step, counted without computing anything.

A step runs on tensors without content: forward pass, nnU-Net's loss, backward pass with everything that is computed again.
Every block of memory is counted from the operation that makes it until nothing refers to it any more. Torch has no autocast
for such tensors, so its rules for GPUs are imitated.
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
"""Assumed, not measured: CUDA's context with torch's, cuDNN's and cuBLAS' code and workspaces."""
CUDA_FRAGMENTS = 0.08
"""Assumed, not measured: what torch's allocator reserves beyond what tensors hold, as a part of that."""

_HALVED = {"conv3d", "conv_transpose3d", "linear", "matmul", "__matmul__", "bmm", "prelu"}
_KEPT_FULL = {"group_norm", "layer_norm", "instance_norm", "softmax", "log_softmax", "binary_cross_entropy_with_logits"}


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step by part.

    Attributes:
        weights: parameters and buffers.
        moments: what the optimiser keeps for the parameters.
        kept: the batch and the activations that the forward pass keeps for the gradients.
        backward: what the backward pass needs in addition at its highest point: gradients, and activations that are
            computed again.
        overhead: what the device needs: context, workspaces, allocator.
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
    """Whether a recipe trains in bf16 or fp16 on a type of device, also where NNUNET_GLIMS_PRECISION says so."""
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
        network: is moved to the meta device; do not use it afterwards.
        patch_size: voxels (D, H, W).
        batch_size: patches a step.
        recipe: its optimiser, precision and deep supervision count.
        device: its type; on GPUs CUDA's overhead is added.
        regions: train overlapping regions instead of labels.
        kernels: whether the device has the package's kernels; None asks for those of this machine.
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
        # Tensor.backward would leave the mode that imitates autocast, and what is computed again needs it
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    gradients = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    moments = gradients * (1 if recipe.optimizer == "SGD" else 2)
    # The optimiser works when activations are gone; on GPUs it makes one more tensor for each gradient.
    highest = max(live.peak, weights + gradients * (2 if device == "cuda" else 1))
    overhead = int(CUDA_CONTEXT + CUDA_FRAGMENTS * (highest + moments)) if device == "cuda" else 0
    return StepMemory(weights, moments, kept, highest - weights - kept, overhead)


def nnunet_loss(outputs: Sequence[Tensor], regions: bool) -> Tensor:
    """nnU-Net's loss of every head against targets of any content, added."""
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
    """Counts the bytes of all blocks of memory that operations make, while they are there."""

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
