"""Dilated feature aggregation of GLIMS (arXiv 2404.17854): several receptive fields at the cost of depthwise convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_glims.architectures.layers import ConvNormAct, InstanceNorm, Recomputing
from nnunet_glims.kernels import ops
from nnunet_glims.kernels.formulas import DILATIONS


class DepthwiseBranch(nn.Module):
    """The parameters of one branch: depthwise 3³ convolution with one dilation, affine instance norm, PReLU."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
        self.norm = InstanceNorm(channels)
        self.act = nn.PReLU()


class DilatedAggregator(Recomputing):
    """Dilated feature aggregator convolutional block (DACB): (N, c, D, H, W) -> the same shape.

    Three parallel branches with dilation 1, 2 and 3; 1³ convolutions 3c -> hidden -> c, each with instance norm and
    PReLU; the input is added; instance norm and PReLU.

    `unused_slope` has no effect. The released model contains this parameter, so it is kept to load released weights and
    to match the published number of parameters. It is frozen, because distributed training fails on parameters without
    gradients.

    Args:
        channels: c.
        hidden: channels between the 1³ convolutions.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.branches = nn.ModuleList(DepthwiseBranch(channels, dilation) for dilation in DILATIONS)
        self.expand = ConvNormAct(len(DILATIONS) * channels, hidden)
        self.reduce = ConvNormAct(hidden, channels)
        self.unused_slope = nn.Parameter(torch.full((1,), 0.25), requires_grad=False)
        self.act = nn.PReLU()

    def compute(self, x: Tensor) -> Tensor:
        if ops.can_fuse(x, self.act.weight):
            return ops.dilated_aggregation(
                x, self.branch_parameters(), self.expand.parameters(), self.reduce.parameters(), self.act.weight
            )
        branches = ops.branches(x, *self.branch_parameters())
        return ops.norm_act(x + self.reduce(self.expand(branches)), self.act.weight)

    def branch_parameters(self) -> tuple[Tensor, ...]:
        """Return weight, bias, gain, shift and slope of the branches as `ops.branches` expects them."""
        weight = torch.stack([branch.conv.weight.flatten(1) for branch in self.branches])
        bias = torch.stack([branch.conv.bias for branch in self.branches])
        gain = torch.stack([branch.norm.weight for branch in self.branches])
        shift = torch.stack([branch.norm.bias for branch in self.branches])
        slope = torch.cat([branch.act.weight for branch in self.branches])
        return weight, bias, gain, shift, slope
