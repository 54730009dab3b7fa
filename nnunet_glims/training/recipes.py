"""Recipes: training settings as data, in the `training` block of a plans configuration.

Settings that the block leaves out come from the trainer's recipe: the optimiser of the network's paper, with nnU-Net's
augmentation, loss and length of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nnunet_glims.validation import validate

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=100_000)]
PrecisionSetting = Literal["auto", "fp32", "bf16", "fp16"]
PRECISION_VARIABLE = "NNUNET_GLIMS_PRECISION"
"""Environment variable with a precision setting that overrides the one in the plans."""


class RegionWeight(BaseModel):
    """The weight of a region in the loss.

    Attributes:
        labels: the labels of the region.
        weight: its weight, from 0.000001 to 1000.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Annotated[list[int], Field(min_length=1)]
    weight: Annotated[Number, Field(ge=1e-6, le=1000)]


class Recipe(BaseModel):
    """How a network is trained.

    Numbers beyond the limits of their fields are refused, because a training with them learns nothing: a learning rate above
    10, for example, or a weight decay above 1.

    Attributes:
        epochs, iterations_per_epoch, validation_iterations: length of training, counted in batches.
        optimizer: "SGD" is with Nesterov momentum, "Adam" has coupled weight decay (an L2 penalty), "AdamW" decoupled.
        lr: learning rate after the warm-up, before the schedule lowers it.
        weight_decay_on: "all" parameters, or "selected": those that the network's paper regularises.
        schedule: the learning rate over epochs: "cosine" to 0, "poly" with exponent 0.9, or "constant".
        warmup_epochs: epochs over which the learning rate rises linearly.
        deep_supervision: whether all heads of the network are trained.
        deep_supervision_weights: weights of the heads, finest first, which are normalised to a sum of 1. None means 1, 1/2,
            1/4, …
        loss: "nnunet" (Dice and cross entropy), "glims" (the same with squared Dice denominators), "latupnet" (weighted
            Dice with squared denominators).
        region_weights: for loss "latupnet". In region-based training each region has its weight, else a label has the sum
            of the weights of the regions it belongs to. None: all 1.
        augmentation: "nnunet", "mirror" (mirroring only) or "none" (then prediction does not mirror either).
        precision: "fp32", "bf16", "fp16", or "auto": on GPUs bf16 if they compute it in hardware, else fp16; on CPUs fp32.
            The environment variable NNUNET_GLIMS_PRECISION overrides it, see `training.precision`.
        gradient_clip: largest norm of the gradient; None does not clip.
        checkpoint_interval: epochs between two writings of checkpoint_latest.pth.
        seed: seed of Python, NumPy, torch and the data loading processes; None sets none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Count = 1000
    iterations_per_epoch: Count = 250
    validation_iterations: Count = 50
    optimizer: Literal["AdamW", "Adam", "SGD"] = "AdamW"
    lr: Annotated[Number, Field(ge=1e-12, le=10)] = 1e-3
    weight_decay: Annotated[Number, Field(ge=0, le=1)] = 1e-5
    weight_decay_on: Literal["all", "selected"] = "all"
    momentum: Annotated[Number, Field(ge=0, le=0.9999)] = 0.99
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] = 0
    deep_supervision: bool = True
    deep_supervision_weights: list[Annotated[Number, Field(ge=0, le=1000)]] | None = None
    loss: Literal["nnunet", "glims", "latupnet"] = "nnunet"
    region_weights: list[RegionWeight] | None = None
    augmentation: Literal["nnunet", "mirror", "none"] = "nnunet"
    precision: PrecisionSetting = "auto"
    gradient_clip: Annotated[Number, Field(ge=1e-6, le=1e6)] | None = 12.0
    checkpoint_interval: Count = 50
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be fewer than the {self.epochs} epochs")
        if self.deep_supervision_weights is not None and not sum(self.deep_supervision_weights) > 0:
            raise ValueError("deep_supervision_weights must not all be 0")
        return self

    def changed(self, settings: Mapping[str, Any], where: str) -> Recipe:
        """Return this recipe with some settings changed; raise `UsageError` that names `where` and the key of a wrong one."""
        return validate(Recipe, {**self.model_dump(), **settings}, where)

    def lr_factor(self, epoch: int) -> float:
        """Return the factor of `lr` in an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return (epoch + 1) / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        if self.schedule == "cosine":
            return 0.5 * (1 + cos(pi * progress))
        if self.schedule == "poly":
            return (1 - progress) ** 0.9
        return 1.0

    def head_weights(self, heads: int) -> list[float]:
        """Return the weight of each head's loss, finest first; the weights sum to 1."""
        weights = self.deep_supervision_weights or [0.5**head for head in range(heads)]
        if len(weights) != heads:
            raise ValueError(f"deep_supervision_weights {weights} must be {heads} numbers, one a head of the network")
        return [weight / sum(weights) for weight in weights]


GLIMS = Recipe(optimizer="AdamW", lr=1e-3, weight_decay=1e-5, schedule="cosine")
"""AdamW, 1e-3, 1e-5, cosine, four heads: the authors' training code."""

LATUPNET = Recipe(
    optimizer="Adam",
    lr=1e-4,
    weight_decay=0.04,
    weight_decay_on="selected",
    schedule="constant",
    deep_supervision=False,
)
"""Adam, constant 1e-4 (arXiv 2404.05911); its L2 penalty 0.02·Σw² is a coupled weight decay of 0.04."""

SWIN_UNETR = Recipe(
    optimizer="AdamW", lr=1e-4, weight_decay=1e-5, schedule="cosine", warmup_epochs=50, deep_supervision=False
)
"""AdamW, 1e-4, 1e-5, 50 epochs of linear warm-up, cosine: the authors' training code for BraTS 2021 (MONAI)."""
