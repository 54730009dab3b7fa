"""The attention variants of LATUP-Net (arXiv 2404.05911): (N, c, D, H, W) -> (N, out_channels, D, H, W)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """No attention: the identity. The other variants derive from it, and most multiply the features by gates.

    Attributes:
        released_layers: name of a layer here -> its name in the released model, without the stage.
        out_channels: number of channels of the result.
    """

    released_layers: ClassVar[dict[str, str]] = {}

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = channels

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates that features are multiplied by: "channel" (N, c, 1, 1, 1) or "spatial" (N, c or 1, D, H, W)."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        for gate in self.gates(x).values():
            x = x * gate
        return x


def _by_channel(weights: Tensor) -> dict[str, Tensor]:
    """Return a channel gate from one weight per channel, (N, c)."""
    return {"channel": weights[:, :, None, None, None]}


class SqueezeExcitation(Attention):
    """SE (arXiv 1709.01507): channel gate from average pooling, linear layer c -> c/8, ReLU, linear layer c/8 -> c, sigmoid."""

    released_layers: ClassVar = {"squeeze": "SE_fc_relu", "excite": "SE_fc_sigmoid"}

    def __init__(self, channels: int):
        super().__init__(channels)
        self.squeeze = nn.Linear(channels, channels // 8, bias=False)
        self.excite = nn.Linear(channels // 8, channels, bias=False)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        pooled = x.mean((2, 3, 4))
        return _by_channel(torch.sigmoid(self.excite(F.relu(self.squeeze(pooled)))))


class SqueezeExcitationConv(Attention):
    """SE with 1³ convolutions instead of linear layers."""

    released_layers: ClassVar = {"squeeze": "SEC_conv1", "excite": "SEC_conv2"}

    def __init__(self, channels: int):
        super().__init__(channels)
        self.squeeze = nn.Conv3d(channels, channels // 8, 1, bias=False)
        self.excite = nn.Conv3d(channels // 8, channels, 1, bias=False)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        pooled = x.mean((2, 3, 4), keepdim=True)
        return {"channel": torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))}


class EfficientChannelAttention(Attention):
    """ECA as released: channel gate from average pooling, linear layer c -> c, softmax over the channels."""

    released_layers: ClassVar = {"fc": "ECA_fc"}

    def __init__(self, channels: int):
        super().__init__(channels)
        self.fc = nn.Linear(channels, channels, bias=False)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return _by_channel(torch.softmax(self.fc(x.mean((2, 3, 4))), dim=1))


class ChannelAttention(Attention):
    """Channel gate: average and maximum pooling, each through c -> c, sigmoid, c -> c (shared); their sum; sigmoid."""

    released_layers: ClassVar = {"fc1": "CH_fc1", "fc2": "CH_fc2"}

    def __init__(self, channels: int):
        super().__init__(channels)
        self.fc1 = nn.Linear(channels, channels, bias=False)
        self.fc2 = nn.Linear(channels, channels, bias=False)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        average, maximum = (
            self.fc2(torch.sigmoid(self.fc1(pooled))) for pooled in (x.mean((2, 3, 4)), x.amax((2, 3, 4)))
        )
        return _by_channel(torch.sigmoid(average + maximum))


class SpatialAttention(Attention):
    """Spatial gate from mean and maximum over the channels, a 7³ convolution to c maps, sigmoid."""

    released_layers: ClassVar = {"conv": "SP_conv"}

    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv = nn.Conv3d(2, channels, 7, padding=3)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return {"spatial": torch.sigmoid(self.conv(pooled))}


class ConvolutionalBlockAttention(Attention):
    """CBAM (arXiv 1807.06521): channel attention, then spatial attention."""

    released_layers: ClassVar = {
        "channel.fc1": "CBAM_CH_fc1",
        "channel.fc2": "CBAM_CH_fc2",
        "spatial.conv": "CBAM_SP_conv",
    }

    def __init__(self, channels: int):
        super().__init__(channels)
        self.channel = ChannelAttention(channels)
        self.spatial = SpatialAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.channel(x))


class Inception(Attention):
    """Four parallel paths instead of attention: 1³; 1³ and 3³; 1³ and 5³; max pooling and 1³. 256 channels; ReLUs."""

    released_layers: ClassVar = {
        "a": "IN_a_conv",
        "b1": "IN_b_conv1",
        "b2": "IN_b_conv2",
        "c1": "IN_c_conv1",
        "c2": "IN_c_conv2",
        "d": "IN_d_conv",
    }

    def __init__(self, channels: int):
        super().__init__(channels)
        self.out_channels = 64 + 128 + 32 + 32
        self.a = nn.Conv3d(channels, 64, 1)
        self.b1 = nn.Conv3d(channels, 128, 1)
        self.b2 = nn.Conv3d(128, 128, 3, padding=1)
        self.c1 = nn.Conv3d(channels, 32, 1)
        self.c2 = nn.Conv3d(32, 32, 5, padding=2)
        self.d = nn.Conv3d(channels, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        paths = (
            self.a(x),
            self.b2(F.relu(self.b1(x))),
            self.c2(F.relu(self.c1(x))),
            self.d(F.max_pool3d(x, 3, stride=1, padding=1)),
        )
        return F.relu(torch.cat(paths, dim=1))


class Multimodal(Attention):
    """Multimodal attention as released: a softmax over a single value, which is always 1, so that it has no effect.

    Its parameters are frozen, because they never get a gradient. `MultimodalFixed` is a version that has an effect.
    """

    released_layers: ClassVar = {"fc1": "MM_fc1", "fc2": "MM_fc2"}

    def __init__(self, channels: int):
        super().__init__(channels)
        self.fc1 = nn.Linear(channels, channels // 16, bias=False)
        self.fc2 = nn.Linear(channels // 16, channels, bias=False)
        self.requires_grad_(False)


class MultimodalFixed(Multimodal):
    """Multimodal attention with the softmax over the voxels, without which the paper's description has no effect.

    The spatial gate is multiplied by the number of voxels. It is 1 on average then, and the features keep their scale.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.requires_grad_(True)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        voxels = x.permute(0, 2, 3, 4, 1)
        scores = F.leaky_relu(self.fc2(F.leaky_relu(self.fc1(voxels), 0.1)), 0.1).sum(-1)
        weights = torch.softmax(scores.flatten(1).float(), dim=1) * scores[0].numel()
        return {"spatial": weights.to(x.dtype).view(scores.shape)[:, None]}


ATTENTION: dict[str, Callable[[int], Attention]] = {
    "SE": SqueezeExcitation,
    "None": Attention,
    "SE3DConv": SqueezeExcitationConv,
    "ECA": EfficientChannelAttention,
    "channel": ChannelAttention,
    "spatial": SpatialAttention,
    "CBAM": ConvolutionalBlockAttention,
    "inception": Inception,
    "multimodal": Multimodal,
    "multimodal_fixed": MultimodalFixed,
}
"""Value of the argument `attention` -> class."""
