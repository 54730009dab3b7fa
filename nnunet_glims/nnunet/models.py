"""nnU-Net's folders of trained models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json
from nnunet_glims.nnunet.dataset_json import read_dataset_json


@dataclass(frozen=True)
class ModelFolder:
    """A folder TRAINER__PLANS__CONFIGURATION in nnUNet_results, with plans.json, dataset.json, fold_0, fold_1 and so on.

    Attributes:
        path: the folder.

    Raises:
        UsageError: the folder has no plans.json or no dataset.json.
    """

    path: Path

    def __post_init__(self) -> None:
        missing = [name for name in ("plans.json", "dataset.json") if not (self.path / name).is_file()]
        if missing:
            raise UsageError(f"{self.path}: this is no model folder of nnU-Net: it has no {' and no '.join(missing)}")

    @property
    def trainer(self) -> str:
        """The name of the trainer's class."""
        return self._parts[0]

    @property
    def configuration(self) -> str:
        """The name of the configuration, such as 3d_fullres."""
        return self._parts[2]

    @property
    def _parts(self) -> list[str]:
        parts = self.path.resolve().name.split("__")
        if len(parts) != 3:
            raise UsageError(f"{self.path}: nnU-Net names a model's folder TRAINER__PLANS__CONFIGURATION")
        return parts

    @cached_property
    def plans(self) -> Mapping[str, Any]:
        """The content of plans.json."""
        return read_json(self.path / "plans.json")

    @cached_property
    def dataset_json(self) -> Mapping[str, Any]:
        """The content of dataset.json."""
        return read_dataset_json(self.path / "dataset.json")

    @property
    def dataset(self) -> str:
        """The name of the data set, DatasetNNN_NAME."""
        if not isinstance(self.plans, dict) or "dataset_name" not in self.plans:
            raise UsageError(f"{self.path / 'plans.json'}: these are no plans of nnU-Net: there is no dataset_name")
        return self.plans["dataset_name"]

    @property
    def folds(self) -> dict[int, Path]:
        """Fold -> its folder, for the folds of a cross-validation; `fold_all` is not one of them."""
        numbered = {folder.name.removeprefix("fold_"): folder for folder in self.path.glob("fold_*")}
        return {int(number): numbered[number] for number in sorted(filter(str.isdigit, numbered), key=int)}

    def network(self):
        """Build the model's network as nnU-Net does; return it with its number of input channels and its patch size.

        The weights are new, not those of the model.

        Raises:
            UsageError: nnU-Net does not find the trainer.
        """
        network, channels, patch_size, _ = network_of(self.plans, self.dataset_json, self.trainer, self.configuration)
        return network, channels, patch_size


def network_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], trainer: str, configuration: str):
    """Build the network of a trainer for plans; return it with its number of input channels, patch size and batch size.

    The weights are new.

    Args:
        plans: content of a plans file.
        dataset_json: content of dataset.json.
        trainer: name of the trainer's class.
        configuration: name of a configuration of the plans.

    Raises:
        UsageError: nnU-Net does not find the trainer.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        with redirect_stdout(StringIO()):  # nnU-Net prints every module that it searches
            trainer_class = recursive_find_trainer_class_by_name(trainer)
    except RuntimeError:
        raise UsageError(f"nnU-Net finds no trainer {trainer} on this machine") from None
    manager = PlansManager(dict(plans))
    settings = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, settings, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    network = trainer_class.build_network_architecture(
        manager, settings, channels, heads, enable_deep_supervision=False
    )
    return network, channels, tuple(settings.patch_size), settings.batch_size
