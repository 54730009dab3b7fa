"""Count the parameters and multiply-accumulates of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(network: nn.Module) -> int:
    """Return the number of all parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_gmac(network: nn.Module, input_channels: int, patch_size: Sequence[int]) -> float:
    """Return the multiply-accumulates (in 10⁹) of convolutions, linear layers and attention for one patch.

    They are counted by torch's FLOP counter, which counts a multiply-accumulate as two FLOPs and ignores norms and
    activations. The network is moved to the meta device, where nothing is computed, and cannot be used afterwards.

    Args:
        network: the network.
        input_channels: channels of the image.
        patch_size: voxels (D, H, W).
    """
    network = network.to("meta").eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(torch.empty(1, input_channels, *patch_size, device="meta"))
    return counter.get_total_flops() / 2e9
