"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nnunet_glims.architectures.layers import Recomputing
from nnunet_glims.kernels.ops import meta_stands_for


def count_parameters(network: nn.Module) -> int:
    """All parameters, frozen ones too."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_gmac(network: nn.Module, input_channels: int, patch_size: Sequence[int]) -> float:
    """10⁹ multiply-accumulates of convolutions, linear layers and attention products for one patch (D, H, W).

    Counted by torch's flop counter, which calls a multiply-accumulate two FLOPs and leaves norms and activations out. The
    network is moved to the meta device, where nothing is computed; do not use it afterwards.
    """
    network = network.to("meta").eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(torch.empty(1, input_channels, *patch_size, device="meta"))
    return counter.get_total_flops() / 2e9


def training_memory(
    network: nn.Module, input_channels: int, patch_size: Sequence[int], batch_size: int, device: str
) -> int:
    """Bytes that a training step in float32 holds at most on a type of device, estimated without computing anything.

    Weights, gradients and two moments of Adam; what the forward pass keeps for the gradients, counted by torch's hooks;
    and the largest part that is computed again, with its gradients. What allocators and libraries need beside that is
    not in it. The network is moved to the meta device; do not use it afterwards.
    """
    network = network.to("meta").train().requires_grad_(True)
    inputs: dict[Recomputing, tuple[torch.Tensor, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, given: inputs.setdefault(module, given))
        for module in network.modules()
        if isinstance(module, Recomputing) and module.recompute
    ]
    with meta_stands_for(device):
        kept = _kept(network, torch.empty(batch_size, input_channels, *patch_size, device="meta"))
        for hook in hooks:
            hook.remove()
        again = max((2 * _kept(module.compute, *given) for module, given in inputs.items()), default=0)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return 4 * weights + kept + again


def _kept(compute: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """Bytes of the tensors that a computation keeps for its gradients, each counted once."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = compute(*inputs)  # kept until the count is made, or storages would share addresses
    count = sum(storage.nbytes() for storage in kept.values())
    del outputs
    return count
