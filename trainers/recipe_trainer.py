"""An nnU-Net trainer for the networks of the registry, with a recipe from the plans."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from nnunet_glims.architectures.base import SegmentationNetwork
from nnunet_glims.errors import UsageError
from nnunet_glims.files import write_json
from nnunet_glims.networks import Network
from nnunet_glims.nnunet.checkpoints import check_loaded
from nnunet_glims.nnunet.plans.configuration import check_is_3d, complete_configuration
from nnunet_glims.trainers.robust_trainer import RobustTrainer
from nnunet_glims.training.losses import SquaredDiceLoss, WeightedDiceLoss
from nnunet_glims.training.precision import PrecisionSetting, chosen, explain_choice
from nnunet_glims.training.recipes import Recipe

MOST_PATCHES = 1024
"""The largest batch size that is not taken for a mistake."""


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _mixed(*numbers: int) -> int:
    """Return one seed below 2³² that depends on all of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@cache
def _say(text: str) -> None:
    print(f"\n{text}")  # nnU-Net's progress bar leaves its line open


def _say_precision(network: SegmentationNetwork, inputs: tuple[Tensor, ...]) -> None:
    """Print the precision before a prediction, once in a process."""
    if network.training or network.precision is None or torch.compiler.is_compiling():
        return
    device_type = next(network.parameters()).device.type
    if device_type != "meta":
        _say(f"Predicting in {explain_choice(network.precision, device_type)}")


def _check_batch_size(size: Any, where: str) -> None:
    if not isinstance(size, int) or not 1 <= size <= MOST_PATCHES:
        raise UsageError(f"{where}: batch_size: a whole number from 1 to {MOST_PATCHES} is wanted here, not {size!r}")


class RecipeSchedule:
    """A schedule that sets the recipe's learning rate when nnU-Net calls `step` at the start of an epoch."""

    def __init__(self, optimizer: Optimizer, recipe: Recipe):
        self.optimizer = optimizer
        self.recipe = recipe

    def step(self, epoch: int) -> None:
        """Set the learning rate of an epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * self.recipe.lr_factor(epoch)


class RecipeTrainer(RobustTrainer):
    """Builds `light_network` for the patch and spacing of the plans, and trains it as their `training` block says.

    Network and recipe are written completely to the model folder's plans.json, from which prediction reads them.

    Attributes:
        light_network: the registry's entry of the network.
        light_network_arguments: constructor arguments that the trainer fixes.
        recipe: how the network is trained.
    """

    light_network: ClassVar[Network]
    light_network_arguments: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own default
    ):
        chosen("auto")  # a wrong environment variable is refused before anything is written
        check_is_3d(plans, configuration)
        planned = PlansManager(plans).get_configuration(configuration).configuration
        where = f"{plans['plans_name']}: {configuration}"
        _check_batch_size(planned.get("batch_size"), where)
        completed = self._complete(planned, where)
        completed.pop("inherits_from", None)
        plans = {**plans, "configurations": {**plans["configurations"], configuration: completed}}
        plans.setdefault("continue_training", False)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.recipe = Recipe(**completed["training"])
        self.num_epochs = self.recipe.epochs
        self.num_iterations_per_epoch = self.recipe.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.recipe.validation_iterations
        self.initial_lr = self.recipe.lr
        self.weight_decay = self.recipe.weight_decay
        self.enable_deep_supervision = self.recipe.deep_supervision
        self.gradient_clip = self.recipe.gradient_clip
        self.save_every = self.recipe.checkpoint_interval
        self.print_to_log_file(f"Network: {completed['architecture']}", add_timestamp=False)
        self.print_to_log_file(f"Recipe: {self.recipe}", add_timestamp=False)

    @classmethod
    def _complete(cls, configuration: Mapping[str, Any], where: str) -> dict[str, Any]:
        return complete_configuration(configuration, cls.light_network, cls.light_network_arguments, where)

    @classmethod
    def build_network_architecture(
        cls, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ) -> nn.Module:
        """Build the network of the plans. It computes in the precision of the plans, or of NNUNET_GLIMS_PRECISION."""
        configuration = cls._complete(configuration_manager.configuration, plans_manager.plans_name)
        architecture = configuration["architecture"]
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )
        network.precision = chosen(configuration["training"]["precision"])
        network.register_forward_pre_hook(_say_precision)
        network.register_load_state_dict_post_hook(check_loaded)
        return network

    def planned_precision(self) -> PrecisionSetting:
        """Return the recipe's precision setting, which NNUNET_GLIMS_PRECISION overrides."""
        return self.recipe.precision

    def set_precision(self, setting: PrecisionSetting) -> None:
        """Compute in this precision from now on, and in the validation after the training."""
        super().set_precision(setting)
        self.bare_network.precision = setting

    def record_fp32(self) -> None:
        """Record the change to fp32 in later checkpoints, and in the model folder's plans.json for predictions."""
        super().record_fp32()
        for plans in (self.plans_manager.plans, self.my_init_kwargs["plans"]):
            plans["configurations"][self.configuration_name]["training"]["precision"] = "fp32"
        if self.local_rank == 0:
            write_json(Path(self.output_folder_base, "plans.json"), self.plans_manager.plans)

    def recorded_fp32(self) -> bool:
        """Return whether the training of the loaded checkpoint changed to fp32; version 0.1 recorded this only in the plans."""
        stored = self.my_init_kwargs["plans"]["configurations"][self.configuration_name].get("training", {})
        return super().recorded_fp32() or stored.get("precision") == "fp32" != self.recipe.precision

    def initialize(self) -> None:
        """Set the recipe's seed, then build network, optimiser and loss."""
        if self.recipe.seed is not None:
            _seed(self.recipe.seed)
        super().initialize()

    def get_dataloaders(self):
        """Return nnU-Net's data loaders. With a seed, their random numbers depend on seed, epoch and worker only."""
        if self.recipe.seed is not None:
            _seed(self._data_seed(self.recipe.seed))
        loaders = super().get_dataloaders()
        if self.recipe.seed is not None:
            _seed(self._data_seed(self.recipe.seed))  # the first batches were loaded in this process
        return loaders

    def _data_seed(self, seed: int) -> int:
        # A resumed training must not repeat its first batches, and no two processes may load the same batches.
        return _mixed(seed, self.current_epoch, self.local_rank)

    def data_loading_seeds(self, loader: int, processes: int) -> list[int] | None:
        """Return a seed for each data loading process; None for a recipe without a seed."""
        if self.recipe.seed is None:
            return None
        seed = self._data_seed(self.recipe.seed)
        return [_mixed(seed, loader, process) for process in range(processes)]

    def configure_optimizers(self) -> tuple[Optimizer, RecipeSchedule]:
        """Return the recipe's optimiser, with weight decay on the parameters that the recipe selects, and its schedule."""
        recipe = self.recipe
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        decayed = {id(parameter) for parameter in parameters}
        if recipe.weight_decay_on == "selected":
            decayed = {id(parameter) for parameter in self.bare_network.selected_decay_parameters()}
        groups = [
            {"params": [p for p in parameters if id(p) in decayed], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer: Optimizer
        if recipe.optimizer == "SGD":
            optimizer = SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
        else:
            optimizer = {"Adam": Adam, "AdamW": AdamW}[recipe.optimizer](groups, lr=recipe.lr)
        return optimizer, RecipeSchedule(optimizer, recipe)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        return self.bare_network.deep_supervision_scales() if self.enable_deep_supervision else None

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch deep supervision on or off; it stays off if the recipe does not use it."""
        super().set_deep_supervision_enabled(enabled and self.enable_deep_supervision)

    def _build_loss(self) -> nn.Module:
        loss = self._plain_loss()
        if self.enable_deep_supervision:
            loss = DeepSupervisionWrapper(loss, self.recipe.head_weights(self.bare_network.num_outputs))
        return loss

    def _plain_loss(self) -> nn.Module:
        """Return the loss of one head."""
        if self.recipe.loss == "nnunet":
            loss = super()._build_loss()
            return loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        labels = self.label_manager
        if self.recipe.loss == "latupnet":
            return WeightedDiceLoss(self._foreground_weights(), labels.has_regions, labels.ignore_label)
        dice = {"batch_dice": self.configuration_manager.batch_dice, "smooth": 1e-5, "ddp": self.is_ddp}
        if labels.has_regions:
            return DC_and_BCE_loss(
                {}, dice, use_ignore_label=labels.ignore_label is not None, dice_class=SquaredDiceLoss
            )
        return DC_and_CE_loss(
            {**dice, "do_bg": False}, {}, ignore_label=labels.ignore_label, dice_class=SquaredDiceLoss
        )

    def _foreground_weights(self) -> list[float]:
        """Return the weight of each foreground label or region, in the order of the logits."""
        labels = self.label_manager
        foreground = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        if self.recipe.region_weights is None:
            return [1.0] * len(foreground)
        weights = []
        for entry in foreground:
            members = {int(label) for label in (entry if isinstance(entry, list | tuple) else [entry])}
            matching = [
                region.weight
                for region in self.recipe.region_weights
                if (members == set(region.labels) if labels.has_regions else members <= set(region.labels))
            ]
            if not matching:
                kind = "region" if labels.has_regions else "label"
                raise UsageError(
                    f"training: region_weights: no weight for {kind} {sorted(members)} of {self.plans_manager.dataset_name}; "
                    "list one, or leave region_weights out for equal weights"
                )
            weights.append(sum(matching))
        return weights

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        """Return nnU-Net's settings of the augmentation, without those that the recipe's augmentation does not have."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.recipe.augmentation != "nnunet":
            initial_patch_size = self.configuration_manager.patch_size
        if self.recipe.augmentation == "none":
            mirror_axes = None
            self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    def get_training_transforms(
        self, patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, do_dummy_2d_data_aug, **kwargs
    ):
        """Return nnU-Net's transforms for training, or with the augmentation "mirror" or "none" only mirroring or none."""
        if self.recipe.augmentation == "nnunet":
            return super().get_training_transforms(
                patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, do_dummy_2d_data_aug, **kwargs
            )
        kwargs.pop("use_mask_for_norm")
        transforms = self.get_validation_transforms(deep_supervision_scales, **kwargs)
        if self.recipe.augmentation == "mirror":
            transforms.transforms.insert(0, MirrorTransform(allowed_axes=mirror_axes))
        return transforms
