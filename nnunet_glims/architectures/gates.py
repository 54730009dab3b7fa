"""Channel and spatial attention on a skip connection: GLIMS' CSAB, derived from CBAM (arXiv 1807.06521).

Unlike in CBAM, both gates are computed from the same input, and the skip connection is multiplied by their product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_glims.architectures.layers import InstanceNorm
from nnunet_glims.kernels import ops


class SpatialGate(nn.Module):
    """Spatial gate before its sigmoid: maximum and mean over channels -> 7³ convolution -> norm -> PReLU.

    The result (N, 1, D, H, W) is one map for all channels. The released model normalises this single map over the
    channel axis, of which only the norm's bias remains. Its gate is therefore constant, and convolution and gain are
    frozen, because they have no effect.
    """

    def __init__(self, released: bool):
        super().__init__()
        self.conv = nn.Conv3d(2, 1, 7, padding=3, bias=False)
        self.norm = InstanceNorm(1)
        self.act = nn.PReLU()
        self.released = released
        if released:
            self.conv.weight.requires_grad_(False)
            self.norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.released:
            return self.act(self.norm.bias.view(1, 1, 1, 1, 1))
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return ops.norm_act(
            ops.gate_convolution(pooled, self.conv.weight), self.act.weight, self.norm.weight, self.norm.bias
        )


class SkipGate(nn.Module):
    """Channel and spatial attention block (CSAB): (N, c, D, H, W) times a channel gate times a spatial gate."""

    def __init__(self, channels: int, released: bool = False):
        super().__init__()
        self.channel = nn.Sequential(nn.Linear(channels, channels // 2), nn.ReLU(), nn.Linear(channels // 2, channels))
        self.spatial = SpatialGate(released)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Return both gates: "channel" (N, c, 1, 1, 1) and "spatial" (N, 1, D, H, W), or (1, 1, 1, 1, 1) where `released`."""
        channel = torch.sigmoid(self.channel(x.mean((2, 3, 4))) + self.channel(x.amax((2, 3, 4))))
        return {"channel": channel[:, :, None, None, None], "spatial": torch.sigmoid(self.spatial(x))}

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        return x * (gates["channel"] * gates["spatial"])
