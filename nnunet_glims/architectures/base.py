"""What all networks here have in common: input check, precision, deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_glims.errors import UsageError
from nnunet_glims.kernels.cpu import keep_freed_memory
from nnunet_glims.topology import Triple, scales
from nnunet_glims.training.precision import PrecisionSetting, autocast


class SegmentationNetwork(nn.Module):
    """A network as nnU-Net uses it.

    A subclass computes a list of logits, finest first, in `logits` and has a `decoder` whose attribute
    `deep_supervision` decides whether callers get that list or only its first entry. The heads are `decoder.seg_layers`:
    nnU-Net knows them by that name when it starts from pretrained weights of other labels.

    Attributes:
        precision: None (the caller's autocast holds), "fp32", "bf16", "fp16" or "auto" (bf16 or fp16 on GPUs, fp32 on CPUs).
            Set, it holds in prediction too, where nnU-Net always asks for fp16 on GPUs.
        strides: stride of each stage relative to the one before, finest first.
        divisor: what an input's D, H, W must be multiples of.
    """

    precision: PrecisionSetting | None = None
    strides: list[Triple]
    divisor: Triple = (1, 1, 1)
    decoder: nn.Module

    def __init__(self, input_channels: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (("input_channels", input_channels), ("num_classes", num_classes)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        self.input_channels = input_channels
        self.num_classes = num_classes

    def logits(self, x: Tensor) -> list[Tensor]:
        """(N, C, D, H, W) -> logits of every head, finest first."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(N, C, D, H, W) -> (N, classes, D, H, W), or with deep supervision a list of them, finest first.

        Logits leave in float32 at least, so that losses and averaged predictions never see half precision.

        Raises:
            UsageError: the input's number of axes or channels is not what the network was built for.
        """
        if x.ndim != 5 or x.shape[1] != self.input_channels:
            raise UsageError(
                f"input of shape {tuple(x.shape)} given, expected (N, {self.input_channels}, D, H, W): "
                f"the network was built for {self.input_channels} input channels"
            )
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            keep_freed_memory(x[:, 0].numel() if torch.is_grad_enabled() else 0)
        with autocast(x.device.type, self.precision):
            outputs = self.logits(x)
        outputs = [out.float() if out.dtype in (torch.float16, torch.bfloat16) else out for out in outputs]
        return outputs if self.decoder.deep_supervision else outputs[0]

    def check_size(self, size: Sequence[int]) -> None:
        """Raise `UsageError` where an input's D, H, W are not multiples of `divisor`."""
        for axis in range(3):
            if size[axis] % self.divisor[axis]:
                raise UsageError(
                    f"input of {list(size)} voxels: axis {axis} must be a multiple of {self.divisor[axis]}; pad the image"
                )

    def deep_supervision_scales(self) -> list[list[float]]:
        """Resolution of each output relative to the patch, finest first."""
        return scales(self.strides, self.num_outputs)

    @property
    def num_outputs(self) -> int:
        """Number of heads."""
        return len(self.decoder.seg_layers)

    def selected_decay_parameters(self) -> list[nn.Parameter]:
        """Return the weights that a recipe with `weight_decay_on: selected` regularises: those the paper does."""
        return [weight for weight in self.parameters() if weight.ndim > 1]


def check_names(found: Sequence[str], expected: Sequence[str], what: str) -> None:
    """Raise `UsageError` naming what is missing from and what is left over in released weights."""
    missing = sorted(set(expected) - set(found))
    left_over = sorted(set(found) - set(expected))
    if missing or left_over:
        parts = [
            f"{title}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
            for title, names in (("missing", missing), ("left over", left_over))
            if names
        ]
        raise UsageError(f"these are not the released weights of {what}; {'; '.join(parts)}")


def check_shape(name: str, found: Sequence[int], expected: Sequence[int], what: str) -> None:
    """Raise `UsageError` where one released array has another shape than the network needs."""
    if tuple(found) != tuple(expected):
        raise UsageError(f"released {what}: {name} has shape {tuple(found)}, expected {tuple(expected)}")
