"""GLIMS: a hybrid of dilated depthwise convolutions and Swin attention (arXiv 2404.17854).

The network comes in two versions with the same parameters. By default it is the network that the paper describes. With
`released=True` it computes exactly what the authors' released model does, which differs in five points:

=========================  ============================================  ========================================
point                      described (default)                           released
=========================  ============================================  ========================================
spatial gate of a skip     varies over space                             constant (norm over a single channel)
patch merging              all 8 octants                                 octants 010 and 001 twice, 110, 011 never
bias in clipped windows    relative positions in the clipped window      those of the first voxels of a 7³ window
padding in a window        masked                                        takes part in attention
initialisation             truncated normal, std 0.02 (linear layers)    PyTorch's default
=========================  ============================================  ========================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_glims.architectures import glims_released
from nnunet_glims.architectures.base import SegmentationNetwork, check_names, check_shape
from nnunet_glims.architectures.dilated import DilatedAggregator
from nnunet_glims.architectures.gates import SkipGate
from nnunet_glims.architectures.layers import ConvNormAct, NonoverlappingConv3d, Recomputing
from nnunet_glims.architectures.window_attention import SwinStage, channel_norm
from nnunet_glims.errors import UsageError
from nnunet_glims.topology import Triple, check_patch_size, check_strides, stage_sizes, stage_strides, total_stride

STAGES = 6
RELEASED_PATCH = (96, 96, 96)
_RELEASED_OCTANTS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


def _aggregators(channels: int) -> nn.Sequential:
    return nn.Sequential(*(DilatedAggregator(channels, 2 * channels) for _ in range(2)))


class EncoderStage(Recomputing):
    """DMSF: two aggregators make the skip connection, from which a strided convolution makes the next stage's input."""

    def __init__(self, channels: int, out_channels: int, stride: Triple):
        super().__init__()
        self.blocks = _aggregators(channels)
        self.down = ConvNormAct(channels, out_channels, stride)

    def compute(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.blocks(x)
        return skip, self.down(skip)


class DecoderStage(Recomputing):
    """DMSU: a transposed convolution; concatenation with the skip connection; a 1³ convolution; two aggregators."""

    def __init__(self, in_channels: int, channels: int, stride: Triple):
        super().__init__()
        self.up = ConvNormAct(in_channels, channels, stride, transposed=True)
        self.fuse = ConvNormAct(2 * channels, channels)
        self.blocks = _aggregators(channels)

    def compute(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.fuse(torch.cat([self.up(x), skip], dim=1)))


class PatchMerging(nn.Module):
    """Concatenate neighbouring voxels, layer norm, linear layer: (N, C, D, H, W) -> (N, C', D/s, H/s, W/s).

    Sizes that the stride does not divide are zero-padded at the end.
    """

    def __init__(self, dim: int, out_dim: int, stride: Triple, released: bool):
        super().__init__()
        self.stride = stride
        self.octants = _RELEASED_OCTANTS if released else tuple(product(*map(range, stride)))
        self.norm = nn.LayerNorm(prod(stride) * dim)
        self.reduction = nn.Linear(prod(stride) * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        missing = [-x.shape[2 + axis] % self.stride[axis] for axis in (2, 1, 0)]
        x = F.pad(x, [value for after in missing for value in (0, after)]).permute(0, 2, 3, 4, 1)
        (sd, sh, sw) = self.stride
        merged = torch.cat([x[:, d::sd, h::sh, w::sw] for d, h, w in self.octants], dim=-1)
        return self.reduction(self.norm(merged)).permute(0, 4, 1, 2, 3)


class PatchExpanding(nn.Module):
    """The counterpart of `PatchMerging`: a linear layer makes the neighbouring voxels of each voxel; layer norm.

    The result (N, C', D·s, H·s, W·s) is cropped to `size`.
    """

    def __init__(self, dim: int, out_dim: int, stride: Triple):
        super().__init__()
        self.stride = stride
        self.expand = nn.Linear(dim, prod(stride) * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        batch, _, depth, height, width = x.shape
        (sd, sh, sw) = self.stride
        x = self.expand(x.permute(0, 2, 3, 4, 1)).view(batch, depth, height, width, sh, sw, sd, -1)
        x = x.permute(0, 1, 6, 2, 4, 3, 5, 7).reshape(batch, depth * sd, height * sh, width * sw, -1)
        return self.norm(x)[:, : size[0], : size[1], : size[2]].permute(0, 4, 1, 2, 3)


class Encoder(nn.Module):
    """Stem, four convolutional stages, Swin stages A and B before and after the last of them, and C in the bottleneck."""

    def __init__(
        self,
        input_channels: int,
        widths: Sequence[int],
        sizes: Sequence[Triple],
        strides: Sequence[Triple],
        depths: Sequence[int],
        num_heads: Sequence[int],
        released: bool,
    ):
        super().__init__()
        self.stem = ConvNormAct(input_channels, widths[0])
        self.stages = nn.ModuleList(EncoderStage(widths[i], widths[i + 1], strides[i + 1]) for i in range(4))
        self.swin_a = SwinStage(widths[3], sizes[3], depths[0], num_heads[0], released)
        self.swin_b = SwinStage(widths[4], sizes[4], depths[1], num_heads[1], released)
        self.merge = PatchMerging(widths[4], widths[5], strides[5], released)
        self.swin_c = SwinStage(widths[5], sizes[5], depths[2], num_heads[2], released)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the bottleneck and five skip connections, finest first, for an image (N, C, D, H, W)."""
        x = self.stem(x)
        skips = []
        for index, stage in enumerate(self.stages):
            if index == 3:
                x = channel_norm(self.swin_a(x))
            skip, x = stage(x)
            skips.append(skip)
        x = self.swin_b(x)
        skips.append(channel_norm(x))
        bottleneck = channel_norm(self.swin_c(channel_norm(self.merge(x))))
        return bottleneck, skips


class Decoder(nn.Module):
    """Swin stage D, four convolutional stages with a head each, and Swin stage E after the first of them."""

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        sizes: Sequence[Triple],
        strides: Sequence[Triple],
        depths: Sequence[int],
        num_heads: Sequence[int],
        released: bool,
    ):
        super().__init__()
        self.gates = nn.ModuleList(SkipGate(width, released) for width in widths[:5])
        self.expand = PatchExpanding(widths[5], widths[4], strides[5])
        self.fuse = ConvNormAct(2 * widths[4], widths[4])
        self.swin_d = SwinStage(widths[4], sizes[4], depths[3], num_heads[3], released)
        self.stages = nn.ModuleList(DecoderStage(widths[i + 1], widths[i], strides[i + 1]) for i in range(4))
        self.swin_e = SwinStage(widths[3], sizes[3], depths[4], num_heads[4], released)
        self.seg_layers = nn.ModuleList(NonoverlappingConv3d(width, num_classes) for width in widths[:4])
        self.deep_supervision = True

    def forward(self, x: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """Return the logits of all heads with deep supervision, else of the finest head only; finest first."""
        skips = [gate(skip) for gate, skip in zip(self.gates, skips, strict=True)]
        x = self.swin_d.position(self.expand(x, skips[4].shape[2:]))
        x = self.swin_d.run_blocks(self.fuse(torch.cat([x, skips[4]], dim=1)))
        features = []
        for index in (3, 2, 1, 0):
            x = self.stages[index](x, skips[index])
            features.append(x)
            if index == 3:
                x = channel_norm(self.swin_e(x))
        features.reverse()
        wanted = len(self.seg_layers) if self.deep_supervision else 1
        return [self.seg_layers[index](features[index]) for index in range(wanted)]


CHECKPOINTING: dict[str, tuple[type[Recomputing], ...]] = {
    "none": (),
    "aggregators": (DilatedAggregator,),
    "stages": (DilatedAggregator, EncoderStage, DecoderStage),
}
"""Value of the argument `checkpointing` -> modules whose activations are recomputed in the backward pass."""


class GLIMS(SegmentationNetwork):
    """GLIMS, as described or as released (see the table of the module).

    It has 47,163,349 parameters for 4 channels, 3 classes and patches of 96³.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        patch_size: voxels (D, H, W) that the position embeddings are made for. Inputs of another size can be computed
            too, with interpolated embeddings, if the total stride of the first five stages divides them.
        strides: stride of each of the 6 stages, the first [1, 1, 1]; None chooses them for isotropic voxels
            (`topology`).
        feature_size: channels at full resolution, a multiple of 3 (24 in the paper).
        depths: Swin blocks of stages A to E.
        num_heads: attention heads of stages A to E.
        deep_supervision: whether the logits of four resolutions are returned instead of the finest only.
        released: whether to compute exactly what the released model does; for patches of 96³ only.
        checkpointing: what a training step recomputes in the backward pass to save memory, where volumes are large:
            "none", "aggregators" or "stages" (aggregators and whole convolutional stages). Results do not depend on it.

    Raises:
        UsageError: the network cannot be built for this patch size, these strides or widths.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        strides: Sequence[Sequence[int]] | None = None,
        feature_size: int = 24,
        depths: Sequence[int] = (2, 6, 2, 6, 2),
        num_heads: Sequence[int] = (6, 12, 24, 12, 6),
        deep_supervision: bool = True,
        released: bool = False,
        checkpointing: str = "aggregators",
    ):
        super().__init__(input_channels, num_classes)
        if checkpointing not in CHECKPOINTING:
            raise UsageError(f"checkpointing {checkpointing!r} is unknown: choose one of {', '.join(CHECKPOINTING)}")
        if feature_size < 1:
            raise UsageError(f"feature_size {feature_size} must be a positive number of channels, for example 24")
        patch = check_patch_size(patch_size)
        if strides is None:
            strides = stage_strides(patch, stages=STAGES)
        self.strides = check_strides(strides, STAGES)
        if released and (patch != RELEASED_PATCH or self.strides[1:] != [(2, 2, 2)] * (STAGES - 1)):
            raise UsageError(
                f"patch size {list(patch)} with strides {[list(step) for step in self.strides]}: the released GLIMS runs "
                "96×96×96 patches halved five times only. Use patch size [96, 96, 96] (plans override "
                "glims_released_brats), or released=False"
            )
        for name, values in (("depths", depths), ("num_heads", num_heads)):
            if len(values) != 5 or min(values) < 1:
                raise UsageError(f"{name} {list(values)} must be five positive numbers, one a Swin stage A to E")
        self.divisor = total_stride(self.strides[:-1])  # without the last: patch merging pads its input
        self.patch_size = patch
        self.released = released
        widths = [feature_size << stage for stage in range(STAGES)]
        sizes = stage_sizes(patch, self.strides)
        parts = (widths, sizes, self.strides, depths, num_heads, released)
        self.encoder = Encoder(input_channels, *parts)
        self.decoder = Decoder(num_classes, *parts)
        self.decoder.deep_supervision = deep_supervision
        if not released:
            self.apply(_truncated_normal)
        for module in self.modules():
            if isinstance(module, CHECKPOINTING[checkpointing]):
                module.recompute = True

    def logits(self, x: Tensor) -> list[Tensor]:
        size = tuple(x.shape[2:])
        if self.released and size != self.patch_size:
            raise UsageError(
                f"input of {list(size)} voxels: the released GLIMS runs 96×96×96 patches only; "
                "cut the image into patches, or build the network with released=False"
            )
        self.check_size(size)
        return self.decoder(*self.encoder(x))

    @classmethod
    def from_released_state_dict(cls, state_dict: Mapping[str, Tensor], **kwargs: Any) -> GLIMS:
        """Return the released model with released weights. Width, channels and classes follow from their shapes.

        Args:
            state_dict: parameters under the released names. The integer buffers `relative_position_index` are ignored.
            kwargs: further constructor arguments, for example `deep_supervision=False`.

        Raises:
            UsageError: names are missing or unknown, or shapes are wrong.
        """
        given = {name: value for name, value in state_dict.items() if not name.endswith("relative_position_index")}
        first, last = "stem.conv.weight", "out1.conv.conv.weight"
        check_names([name for name in (first, last) if name in given], (first, last), "GLIMS")
        feature_size, input_channels = given[first].shape[:2]
        num_classes = given[last].shape[0]
        network = cls(
            input_channels, num_classes, RELEASED_PATCH, feature_size=int(feature_size), released=True, **kwargs
        )
        own = network.state_dict()
        released_names = dict(glims_released.names(network))
        check_names(list(given), list(released_names.values()), "GLIMS")
        converted = {}
        for name, parameter in own.items():
            value = torch.as_tensor(given[released_names[name]])
            shape = parameter.flatten(2).shape if name.endswith("position.weight") else parameter.shape
            check_shape(released_names[name], value.shape, shape, "GLIMS")
            converted[name] = value.reshape(parameter.shape)
        network.load_state_dict(converted)
        return network


def _truncated_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
