"""The base class of all networks: input check, precision, deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_glims.errors import UsageError, listed
from nnunet_glims.kernels.cpu import keep_freed_memory
from nnunet_glims.topology import Triple, scales
from nnunet_glims.training.precision import PrecisionSetting, autocast


class SegmentationNetwork(nn.Module):
    """A network as nnU-Net uses it.

    A subclass computes a list of logits, finest first, in the method `logits`. It has a `decoder` whose attribute
    `deep_supervision` decides whether `forward` returns this list or only its first entry. The heads are in
    `decoder.seg_layers`, the name by which nnU-Net finds them when it starts from pretrained weights for other labels.

    Attributes:
        precision: "fp32", "bf16", "fp16", "auto" (bf16 or fp16 on GPUs, fp32 on CPUs), or None, with which the caller's
            autocast stays in effect. It also applies to prediction, where nnU-Net itself would use fp16 on all GPUs.
        strides: stride of each stage relative to the one before, finest first.
        divisor: three numbers of which an input's D, H, W must be multiples.
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
        """Return the logits of every head, finest first, for an input (N, C, D, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits (N, classes, D, H, W) for an input (N, C, D, H, W); with deep supervision a list, finest first.

        Logits are float32 or float64, so that losses and averages of predictions are not computed in half precision.

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
        """Raise `UsageError`, which states the size to pad to, if an input's D, H, W are not multiples of `divisor`."""
        padded = [-(-length // divisor) * divisor for length, divisor in zip(size, self.divisor, strict=True)]
        if padded != list(size):
            axis = next(axis for axis in range(3) if padded[axis] != size[axis])
            raise UsageError(
                f"input of {list(size)} voxels: axis {axis} must be a multiple of {self.divisor[axis]}; "
                f"pad the image to {padded}"
            )

    def deep_supervision_scales(self) -> list[list[float]]:
        """Return the resolution of each output relative to the patch, finest first."""
        return scales(self.strides, self.num_outputs)

    @property
    def num_outputs(self) -> int:
        """Number of heads."""
        return len(self.decoder.seg_layers)

    def selected_decay_parameters(self) -> list[nn.Parameter]:
        """Return the weights that the network's paper regularises, for recipes with `weight_decay_on: selected`."""
        return [weight for weight in self.parameters() if weight.ndim > 1]


def check_names(found: Sequence[str], expected: Sequence[str], what: str) -> None:
    """Raise `UsageError` with the names that are missing from released weights and those that are not expected."""
    missing = sorted(set(expected) - set(found))
    left_over = sorted(set(found) - set(expected))
    if missing or left_over:
        parts = [
            f"{title}: {listed(names)}" for title, names in (("missing", missing), ("left over", left_over)) if names
        ]
        raise UsageError(f"these are not the released weights of {what}; {'; '.join(parts)}")


def check_shape(name: str, found: Sequence[int], expected: Sequence[int], what: str) -> None:
    """Raise `UsageError` if a released array does not have the shape that the network needs."""
    if tuple(found) != tuple(expected):
        raise UsageError(f"released {what}: {name} has shape {tuple(found)}, expected {tuple(expected)}")
