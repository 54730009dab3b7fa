"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


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
