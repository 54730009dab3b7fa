"""LATUP-Net: a light U-Net with parallel convolutions and attention (arXiv 2404.05911).

Every convolution has a bias and "same" padding, and the activation precedes the norm: convolution -> LeakyReLU(0.1)
-> norm. A 2³ convolution with "same" padding is padded by one voxel at the end of each axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_glims.architectures.base import SegmentationNetwork, check_names, check_shape
from nnunet_glims.architectures.latupnet_attention import ATTENTION
from nnunet_glims.architectures.layers import InstanceNorm, NonoverlappingConv3d
from nnunet_glims.errors import UsageError
from nnunet_glims.topology import Triple, check_patch_size, check_strides, stage_sizes, stage_strides, total_stride

STAGES = 4
SLOPE = 0.1


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2)


class ParallelConvolutions(nn.Module):
    """3³ convolution (the skip connection), then parallel 1³, 3³ and 5³ convolutions, max-pooled and concatenated."""

    def __init__(self, input_channels: int, channels: int, stride: Triple):
        super().__init__()
        self.embed = _convolution(input_channels, channels, 3)
        self.branches = nn.ModuleList(_convolution(channels, channels, kernel) for kernel in (1, 3, 5))
        self.stride = stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = _activate(self.embed(x))
        pooled = [F.max_pool3d(_activate(branch(skip)), self.stride) for branch in self.branches]
        return skip, torch.cat(pooled, dim=1)


class EncoderStage(nn.Module):
    """Attention, convolution, norm, convolution (whose output is the skip connection), dropout, max pooling."""

    def __init__(self, in_channels: int, channels: int, stride: Triple, attention: str, dropout: float):
        super().__init__()
        self.attention = ATTENTION[attention](in_channels)
        self.conv1 = _convolution(self.attention.out_channels, channels, 3)
        self.norm = InstanceNorm(channels, eps=1e-3)
        self.conv2 = _convolution(channels, channels, 3)
        self.dropout = nn.Dropout(dropout)
        self.stride = stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(_activate(self.conv1(self.attention(x))))
        skip = _activate(self.conv2(x))
        return skip, F.max_pool3d(self.dropout(skip), self.stride)


class UpsampleConvolution(nn.Conv3d):
    """Nearest-neighbour upsampling by `scale`, then a 2³ convolution: (N, C, D, H, W) -> (N, C', s·D, s·H, s·W).

    The convolution is padded by one voxel at the end of each axis. It is computed on the coarse grid, so that the
    upsampled volume is never allocated. Of the `scale` fine voxels that a coarse voxel becomes along an axis, all but
    the last have both taps of the kernel on this coarse voxel, which is a convolution with the sum of the taps; the
    second tap of the last one reads the next coarse voxel.
    """

    def __init__(self, in_channels: int, out_channels: int, scale: Triple):
        super().__init__(in_channels, out_channels, 2)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self._along(x, self.weight, [])

    def _along(self, x: Tensor, weight: Tensor, lasts: list[bool]) -> Tensor:
        """Compute the fine voxels along the next axis and interleave them.

        Args:
            x: the coarse volume.
            weight: the kernel, with taps summed along the axes before this one where `lasts` is False.
            lasts: for each axis before this one, whether the last fine voxel of each coarse voxel is computed.
        """
        axis = len(lasts)
        if axis == 3:
            behind = [size for last in reversed(lasts) for size in (0, int(last))]
            return F.conv3d(F.pad(x, behind), weight, self.bias)
        last = self._along(x, weight, [*lasts, True])
        step = self.scale[axis]
        if step == 1:
            return last
        inner = self._along(x, weight.sum(2 + axis, keepdim=True), [*lasts, False])
        return torch.stack([*[inner] * (step - 1), last], dim=3 + axis).flatten(2 + axis, 3 + axis)


class DecoderStage(nn.Module):
    """Upsampling by a 2³ convolution, norm; concatenation with the skip; convolution, attention, dropout, convolution."""

    def __init__(self, in_channels: int, channels: int, stride: Triple, attention: str, dropout: float):
        super().__init__()
        self.conv1 = UpsampleConvolution(in_channels, channels, stride)
        self.norm = InstanceNorm(channels, eps=1e-3)
        self.conv2 = _convolution(2 * channels, channels, 3)
        self.attention = ATTENTION[attention](channels)
        self.dropout = nn.Dropout(dropout)
        self.conv3 = _convolution(self.attention.out_channels, channels, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.norm(_activate(self.conv1(x)))
        x = _activate(self.conv2(torch.cat([x, skip], dim=1)))
        return _activate(self.conv3(self.dropout(self.attention(x))))


class Encoder(nn.Module):
    """The stage of parallel convolutions, two more stages, and attention in the bottleneck."""

    def __init__(
        self, input_channels: int, widths: Sequence[int], strides: Sequence[Triple], attention: str, dropout: float
    ):
        super().__init__()
        self.first = ParallelConvolutions(input_channels, widths[0], strides[1])
        self.stages = nn.ModuleList(
            (
                EncoderStage(3 * widths[0], widths[1], strides[2], attention, dropout),
                EncoderStage(widths[1], widths[2], strides[3], attention, dropout),
            )
        )
        self.bottleneck = ATTENTION[attention](widths[2])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the bottleneck and three skip connections, finest first, for an image (N, C, D, H, W)."""
        skip, x = self.first(x)
        skips = [skip]
        for stage in self.stages:
            skip, x = stage(x)
            skips.append(skip)
        return self.bottleneck(x), skips


class Decoder(nn.Module):
    """Three stages and a segmentation head. With deep supervision, which the paper does not have, each stage has a head."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        widths: Sequence[int],
        strides: Sequence[Triple],
        attention: str,
        dropout: float,
        deep_supervision: bool,
    ):
        super().__init__()
        incoming = [*widths[1:], in_channels]
        self.stages = nn.ModuleList(
            DecoderStage(incoming[i], widths[i], strides[i + 1], attention, dropout) for i in range(3)
        )
        supervised = widths if deep_supervision else widths[:1]
        self.seg_layers = nn.ModuleList(NonoverlappingConv3d(width, num_classes) for width in supervised)
        self.deep_supervision = deep_supervision
        self.register_load_state_dict_pre_hook(_drop_auxiliary_heads)

    def forward(self, x: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """Return the logits of all heads with deep supervision, else of the finest head only; finest first."""
        features = []
        for index in (2, 1, 0):
            x = self.stages[index](x, skips[index])
            features.append(x)
        features.reverse()
        wanted = len(self.seg_layers) if self.deep_supervision else 1
        return [self.seg_layers[index](features[index]) for index in range(wanted)]


def _drop_auxiliary_heads(decoder: Decoder, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Remove the weights of heads that this network lacks: nnU-Net predicts without deep supervision, but trains with it."""
    for name in [name for name in state_dict if name.startswith(f"{prefix}seg_layers.")]:
        if int(name.removeprefix(f"{prefix}seg_layers.").split(".")[0]) >= len(decoder.seg_layers):
            del state_dict[name]


class LATUPNet(SegmentationNetwork):
    """LATUP-Net.

    With SE attention it has 3,069,060 parameters for 3 channels and 4 classes, and 3,069,924 for 4 channels.

    Args:
        input_channels: channels of the image (FLAIR, T1ce, T2 in the paper).
        num_classes: channels of the logits. The released model ends with a softmax over them; this one does not.
        patch_size: voxels (D, H, W) that strides are chosen for. It is needed where `strides` is None and 8 does not
            divide the patch. Parameters do not depend on it.
        strides: stride of each of the 4 stages, the first [1, 1, 1]; None chooses them for isotropic voxels
            (`topology`).
        features: channels of the three stages.
        attention: "SE" (that of the paper), "None", "SE3DConv", "ECA", "channel", "spatial", "CBAM", "inception",
            "multimodal" (as released, where it has no effect) or "multimodal_fixed"; see `latupnet_attention`.
        dropout: dropout probability of every stage but the first.
        deep_supervision: whether each decoder stage has a head, whose logits are returned as well (not in the paper).

    Raises:
        UsageError: the attention is unknown, or the network cannot be built for this patch size or these strides.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int] | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        features: Sequence[int] = (32, 64, 128),
        attention: str = "SE",
        dropout: float = 0.2,
        deep_supervision: bool = False,
    ):
        super().__init__(input_channels, num_classes)
        if attention not in ATTENTION:
            raise UsageError(f"attention {attention!r} is unknown: choose one of {', '.join(ATTENTION)}")
        if len(features) != 3 or min(features) < 16:
            raise UsageError(f"features {list(features)} must be the channels of three stages, each at least 16")
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout {dropout} must be a probability from 0 to below 1")
        if strides is None:
            strides = stage_strides((128, 128, 128) if patch_size is None else patch_size, stages=STAGES)
        self.strides = check_strides(strides, STAGES)
        if patch_size is not None:
            stage_sizes(check_patch_size(patch_size), self.strides)
        self.divisor = total_stride(self.strides)
        self.attention = attention
        shared = (tuple(features), self.strides, attention, dropout)
        self.encoder = Encoder(input_channels, *shared)
        self.decoder = Decoder(num_classes, self.encoder.bottleneck.out_channels, *shared, deep_supervision)
        self.apply(_he_uniform)

    def logits(self, x: Tensor) -> list[Tensor]:
        self.check_size(x.shape[2:])
        return self.decoder(*self.encoder(x))

    def selected_decay_parameters(self) -> list[nn.Parameter]:
        """Return the kernels that the paper's L2 penalty is on: of 3³ convolutions after the first stage, and of the heads."""
        return [
            module.weight
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv3d)
            and (module.kernel_size == (3, 3, 3) or name.startswith("decoder.seg_layers."))
            and not name.startswith("encoder.first.")
        ]

    @classmethod
    def from_released_arrays(
        cls, arrays: Mapping[str, Any], layout: Literal["torch", "keras"] = "torch", **kwargs: Any
    ) -> LATUPNet:
        """Return a network with released weights. Attention, channels and classes follow from their names and shapes.

        Args:
            arrays: `<layer>.<kernel|bias|gamma|beta>` -> array (NumPy or torch).
            layout: "torch" for kernels (out, in, k, k, k) and dense layers (out, in), "keras" for the released layout
                (k, k, k, in, out) and (in, out).
            kwargs: further constructor arguments, for example `strides`.

        Raises:
            UsageError: the layout is unknown, names are missing or unknown, or shapes are wrong.
        """
        if layout not in ("torch", "keras"):
            raise UsageError(f'layout {layout!r} is unknown: "torch" or "keras"')
        given = {name: _to_torch_layout(torch.as_tensor(array), layout) for name, array in arrays.items()}
        decisive = tuple(f"{layer}.kernel" for layer in ("enc1_pc_embed", "enc2_conv1", "enc3_conv1", "prob_map"))
        check_names([name for name in decisive if name in given], decisive, "LATUP-Net")
        shapes = [given[name].shape for name in decisive]
        network = cls(
            shapes[0][1],
            shapes[-1][0],
            features=tuple(shape[0] for shape in shapes[:3]),
            attention=_released_attention(given),
            **kwargs,
        )
        own = network.state_dict()
        released_names = dict(_released_names(network))
        check_names(list(given), list(released_names.values()), f"LATUP-Net ({network.attention} attention)")
        for name, parameter in own.items():
            check_shape(released_names[name], given[released_names[name]].shape, parameter.shape, "LATUP-Net")
        network.load_state_dict({name: given[released_names[name]] for name in own})
        return network


def _he_uniform(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _to_torch_layout(array: Tensor, layout: str) -> Tensor:
    if layout == "torch":
        return array
    return array.permute(4, 3, 0, 1, 2) if array.ndim == 5 else array.T if array.ndim == 2 else array


def _released_attention(names: Mapping[str, Any]) -> str:
    """Return the attention variant that the released names belong to (`enc2_<mark>…`)."""
    marks = {name.removeprefix("enc2_") for name in names if name.startswith("enc2_")}

    def has(mark: str) -> bool:
        return any(name.startswith(mark) for name in marks)

    if has("CBAM_CH_"):
        return "CBAM"
    found = (("SE_", "SE"), ("SEC_", "SE3DConv"), ("ECA_", "ECA"), ("CH_", "channel"), ("SP_", "spatial"))
    for mark, attention in (*found, ("IN_", "inception"), ("MM_", "multimodal")):
        if has(mark):
            return attention
    return "None"


def _released_names(network: LATUPNet) -> Iterator[tuple[str, str]]:
    """Yield the pair (name here, released name) of every parameter."""

    def convolution(ours: str, released: str) -> Iterator[tuple[str, str]]:
        yield f"{ours}.weight", f"{released}.kernel"
        yield f"{ours}.bias", f"{released}.bias"

    def norm(ours: str, released: str) -> Iterator[tuple[str, str]]:
        yield f"{ours}.weight", f"{released}_instance_norm.gamma"
        yield f"{ours}.bias", f"{released}_instance_norm.beta"

    def attention(ours: str, released: str, module: nn.Module) -> Iterator[tuple[str, str]]:
        kinds: Mapping[str, str] = {"weight": "kernel", "bias": "bias"}
        for name, _ in module.named_parameters():
            layer, kind = name.rsplit(".", 1)
            yield f"{ours}.{name}", f"{released}_{module.released_layers[layer]}.{kinds[kind]}"

    yield from convolution("encoder.first.embed", "enc1_pc_embed")
    for i in range(3):
        yield from convolution(f"encoder.first.branches.{i}", f"enc1_pc_{i + 1}_conv")
    for i, stage in enumerate(network.encoder.stages):
        ours, released = f"encoder.stages.{i}", f"enc{i + 2}"
        yield from attention(f"{ours}.attention", released, stage.attention)
        yield from convolution(f"{ours}.conv1", f"{released}_conv1")
        yield from norm(f"{ours}.norm", released)
        yield from convolution(f"{ours}.conv2", f"{released}_conv2")
    yield from attention("encoder.bottleneck", "bn", network.encoder.bottleneck)
    for i, stage in enumerate(network.decoder.stages):
        ours, released = f"decoder.stages.{i}", f"dec{i + 1}"
        yield from convolution(f"{ours}.conv1", f"{released}_conv1")
        yield from norm(f"{ours}.norm", released)
        yield from convolution(f"{ours}.conv2", f"{released}_conv2")
        yield from attention(f"{ours}.attention", released, stage.attention)
        yield from convolution(f"{ours}.conv3", f"{released}_conv3" if i else "upsample_layer_3_conv2")
    yield from convolution("decoder.seg_layers.0", "prob_map")
