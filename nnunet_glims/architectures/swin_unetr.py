"""Swin UNETR (arXiv 2201.01266): MONAI's implementation with the interface of the other networks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_glims.architectures.base import SegmentationNetwork
from nnunet_glims.errors import UsageError
from nnunet_glims.topology import check_patch_size

DIVISOR = 32
"""Patch embedding and four patch merging layers halve every axis, five times in all."""


class Decoder(nn.Module):
    """MONAI's network, with its only segmentation head under the name by which nnU-Net finds heads."""

    def __init__(self, network: nn.Module, deep_supervision: bool):
        super().__init__()
        self.network = network
        self.seg_layers = nn.ModuleList([network.out])
        network.out = nn.Identity()
        self.deep_supervision = deep_supervision

    def forward(self, x: Tensor) -> Tensor:
        return self.seg_layers[0](self.network(x))


class SwinUNETR(SegmentationNetwork):
    """Swin UNETR.

    It has 62.19 M parameters for 4 channels, 3 classes and `feature_size` 48 (61.98 M as published).

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        patch_size: voxels (D, H, W). Parameters do not depend on it. Inputs that 32 does not divide are zero-padded at
            the end inside the network, and the logits are cropped.
        feature_size: channels after the patch embedding, a multiple of 12.
        depths: Swin blocks of the four stages.
        num_heads: attention heads of the four stages.
        deep_supervision: whether the logits are returned as a list of one, which trainers with deep supervision expect.
        checkpointing: whether activations are recomputed in the backward pass instead of kept.

    Raises:
        UsageError: MONAI is not installed, or the network cannot be built from these arguments.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int] | None = None,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        deep_supervision: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__(input_channels, num_classes)
        patch = (DIVISOR,) * 3 if patch_size is None else check_patch_size(patch_size)
        for name, values in (("depths", depths), ("num_heads", num_heads)):
            if len(values) != 4 or min(values) < 1:
                raise UsageError(f"{name} {list(values)} must be four positive numbers, one a stage")
        if feature_size % 12 or feature_size < 12:
            raise UsageError(
                f"feature_size {feature_size} must be a multiple of 12 for Swin UNETR, for example 24 or 48"
            )
        try:
            from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
        except ImportError as error:
            raise UsageError(
                f"Swin UNETR needs MONAI, which cannot be imported ({error}): pip install 'nnunet-glims[swinunetr]'"
            ) from error
        arguments: dict[str, Any] = {
            "in_channels": input_channels,
            "out_channels": num_classes,
            "feature_size": feature_size,
            "depths": tuple(depths),
            "num_heads": tuple(num_heads),
            "use_checkpoint": checkpointing,
        }
        if "img_size" in inspect.signature(MonaiSwinUNETR).parameters:  # MONAI before 1.5
            arguments["img_size"] = tuple(-(-size // DIVISOR) * DIVISOR for size in patch)
        self.strides = [(1, 1, 1)]
        self.decoder = Decoder(MonaiSwinUNETR(**arguments), deep_supervision)

    def logits(self, x: Tensor) -> list[Tensor]:
        depth, height, width = x.shape[2:]
        missing = [-size % DIVISOR for size in (width, height, depth)]
        if max(depth, height, width) <= DIVISOR:  # instance norm needs two voxels in the coarsest stage
            missing[0] += DIVISOR
        x = F.pad(x, [value for after in missing for value in (0, after)])
        return [self.decoder(x)[:, :, :depth, :height, :width]]
