"""The losses of the papers, for logits of nnU-Net's labels (softmax) or regions (sigmoid)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import torch
from torch import Tensor, nn

ENET_CONSTANT = 1.22


def enet_weight(share: float) -> float:
    """Return the weight 1 / ln(1.22 + p) of a region that fills the fraction p of the volume (LATUP-Net, after ENet)."""
    return 1 / log(ENET_CONSTANT + share)


def squared_dice(
    probabilities: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    all_workers: bool = False,
) -> Tensor:
    """Return the soft Dice with squared denominators, 2·Σpt / (Σp² + Σt²), of each channel.

    Args:
        probabilities: (N, C, D, H, W).
        target: (N, C, D, H, W) in one-hot or region form, or (N, 1, D, H, W) label numbers.
        mask: (N, 1, D, H, W), false for voxels that do not count.
        batch_dice: whether the sums of all cases of the batch are added before dividing.
        smooth: constant added to numerator and denominator.
        all_workers: with `batch_dice`, the batch is that of all workers of a distributed training. Then the gradient of each
            worker is the sum over the losses of all workers, whose mean DistributedDataParallel takes.

    Returns:
        (N, C), or (1, C) with `batch_dice`.
    """
    if target.shape != probabilities.shape:
        one_hot = torch.zeros_like(probabilities)
        target = one_hot.scatter_(1, target.long(), 1)
    target = target.to(probabilities.dtype)
    if mask is not None:
        probabilities, target = probabilities * mask, target * mask
    axes = (2, 3, 4)
    overlap = (probabilities * target).sum(axes)
    sizes = probabilities.square().sum(axes) + target.square().sum(axes)
    if batch_dice:
        overlap, sizes = overlap.sum(0, keepdim=True), sizes.sum(0, keepdim=True)
        if all_workers:
            from torch.distributed.nn.functional import all_reduce

            overlap, sizes = all_reduce(torch.stack([overlap, sizes]))
    return (2 * overlap + smooth) / (sizes + smooth)


class SquaredDiceLoss(nn.Module):
    """The negative mean of `squared_dice` over channels, with the interface of nnU-Net's Dice classes.

    Args:
        apply_nonlin: function that turns logits into probabilities.
        batch_dice: whether the sums of all cases of the batch are added before dividing.
        do_bg: whether the first channel counts too.
        smooth: constant added to numerator and denominator.
        ddp: whether the training is distributed. With `batch_dice` the batch is then that of all workers.
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor],
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1e-5,
        ddp: bool = False,
    ):
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.first_channel = 0 if do_bg else 1
        self.smooth = smooth
        self.ddp = ddp

    def forward(self, logits: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, D, H, W); `target` and `loss_mask` are `target` and `mask` of `squared_dice`."""
        probabilities = self.apply_nonlin(logits)
        dice = squared_dice(probabilities, target, loss_mask, self.batch_dice, self.smooth, all_workers=self.ddp)
        return -dice[:, self.first_channel :].mean()


class WeightedDiceLoss(nn.Module):
    """LATUP-Net's loss: the weighted sum of 1 − Dice over foreground labels or regions (arXiv 2404.05911).

    A label of BraTS has the sum of the weights of the regions that it belongs to: (WT+TC+ET) for ET, (WT+TC) for NCR, WT for
    ED.

    Args:
        weights: one for each foreground label or region.
        regions: whether logits are those of overlapping regions (sigmoid), else of labels, background first (softmax).
        ignore_label: number of the label whose voxels do not count. With regions it is the target's last channel.
        smooth: constant added to numerator and denominator.
    """

    def __init__(self, weights: Sequence[float], regions: bool, ignore_label: int | None = None, smooth: float = 1e-5):
        super().__init__()
        self.register_buffer("weights", torch.tensor(list(weights)), persistent=False)
        self.regions = regions
        self.ignore_label = ignore_label
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, D, H, W) and a target of labels (N, 1, D, H, W) or regions (N, C, D, H, W)."""
        mask = None
        if self.ignore_label is not None:
            if self.regions:
                mask, target = target[:, -1:] == 0, target[:, :-1]
            else:
                mask = target != self.ignore_label
                target = torch.where(mask, target, 0)
        probabilities = torch.sigmoid(logits) if self.regions else torch.softmax(logits, 1)
        dice = squared_dice(probabilities, target, mask, smooth=self.smooth)
        foreground = dice if self.regions else dice[:, 1:]
        return ((1 - foreground) * self.weights.to(dice.device)).sum(1).mean()
