"""nnU-Net's folders of trained models."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from nnunet_glims.errors import ProcessingError, UsageError, UserError
from nnunet_glims.nnunet.folders import read_dataset_json
from nnunet_glims.nnunet.plans.configuration import read_plans
from nnunet_glims.nnunet.trust import trusted_manager
from nnunet_glims.validation import validate

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

PLANS_JSON, DATASET_JSON = "plans.json", "dataset.json"
DATASET_NAME = re.compile(r"Dataset\d{3,}_[^/\\]+")


MOST_VOXELS = 2**28
"""Largest number of voxels of a patch."""


def check_voxels(size: Sequence[int]) -> Sequence[int]:
    """Return the size of a patch; raise `ValueError` if it has more voxels than any memory holds."""
    if math.prod(size) > MOST_VOXELS:
        raise ValueError(f"a patch may have at most {MOST_VOXELS:,} voxels, not {math.prod(size):,}")
    return size


Size = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=3), AfterValidator(check_voxels)]
Axes = Annotated[list[Annotated[int, Field(ge=0, le=2)]], Field(min_length=3, max_length=3)]


class _Plans(BaseModel):
    """What is read of plans besides the configuration."""

    plans_name: str
    image_reader_writer: str
    transpose_forward: Axes
    transpose_backward: Axes
    label_manager: str = "LabelManager"
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]] = Field(default_factory=dict)


class _Sizes(BaseModel):
    """What costs depend on."""

    patch_size: Size
    batch_size: int = Field(ge=1)


class _Configuration(_Sizes):
    """What is read of a configuration besides its architecture."""

    preprocessor_name: str
    spacing: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=2, max_length=3)]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, Any]
    previous_stage: str | None = None


@dataclass(frozen=True)
class ModelFolder:
    """A folder TRAINER__PLANS__CONFIGURATION in nnUNet_results, with plans.json, dataset.json, fold_0, fold_1 and so on.

    Attributes:
        path: the folder.
        trust: whether its plans may have any network and layer imported and called, see `nnunet.trust`.

    Raises:
        UsageError: the folder has no plans.json or no dataset.json.
    """

    path: Path
    trust: bool = False

    def __post_init__(self) -> None:
        missing = [name for name in (PLANS_JSON, DATASET_JSON) if not (self.path / name).is_file()]
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
        return read_plans(self.path / PLANS_JSON)

    @cached_property
    def dataset_json(self) -> Mapping[str, Any]:
        """The content of dataset.json."""
        return read_dataset_json(self.path / DATASET_JSON)

    @cached_property
    def channels(self) -> list[str]:
        """The names of the channels in their order."""
        named: Any = self.dataset_json["channel_names"]
        numbers = [str(number) for number in range(len(named))] if isinstance(named, Mapping) else []
        if not numbers or set(named) != set(numbers):
            raise ProcessingError(
                f"{self.path / DATASET_JSON}: channel_names: channels are numbered '0', '1' and so on, each with its name"
            )
        return [str(named[number]) for number in numbers]

    @property
    def dataset(self) -> str:
        """The name of the data set, DatasetNNN_NAME."""
        name = self.plans.get("dataset_name")
        if not isinstance(name, str) or not DATASET_NAME.fullmatch(name):  # a path would lead out of nnU-Net's folders
            raise ProcessingError(
                f"{self.path / PLANS_JSON}: dataset_name: {str(name)[:100]!r} is no name of a data set, DatasetNNN_NAME"
            )
        return name

    @cached_property
    def manager(self) -> PlansManager:
        """nnU-Net's object for the plans.

        Raises:
            NotTrustedError: the plans would have something imported or called that is not admitted.
            ProcessingError: the plans or dataset.json are damaged.
        """
        return self._managers[0]

    @cached_property
    def settings(self) -> ConfigurationManager:
        """nnU-Net's object for the configuration; it raises the same errors as `manager`."""
        return self._managers[1]

    @cached_property
    def _managers(self) -> tuple[PlansManager, ConfigurationManager]:
        where = str(self.path / PLANS_JSON)
        manager, settings = trusted_manager(self.plans, self.configuration, where, self.trust)
        validate(_Plans, dict(self.plans), where, error=ProcessingError)
        key = f"{where}: configurations.{self.configuration}"
        planned = validate(_Configuration, settings.configuration, key, error=ProcessingError)
        channels = len(self.channels)
        if not len(planned.normalization_schemes) == len(planned.use_mask_for_norm) == channels:
            raise ProcessingError(
                f"{key}.normalization_schemes: {len(planned.normalization_schemes)} schemes with "
                f"{len(planned.use_mask_for_norm)} use_mask_for_norm, for the {channels} channels of {DATASET_JSON}"
            )
        return manager, settings

    @cached_property
    def labels(self) -> LabelManager:
        """nnU-Net's object for the labels and regions; it raises the same errors as `manager`."""
        return label_manager(self.manager, self.dataset_json, str(self.path / DATASET_JSON))

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
            NotTrustedError: the plans would have something imported or called that is not admitted.
            ProcessingError: no network can be built as the plans say.
        """
        network, channels, patch_size, _ = network_of(
            self.plans, self.dataset_json, self.trainer, self.configuration, str(self.path / PLANS_JSON), self.trust
        )
        return network, channels, patch_size


def label_manager(manager: PlansManager, dataset_json: Mapping[str, Any], where: str) -> LabelManager:
    """Return nnU-Net's object for labels and regions; raise `ProcessingError` naming the file if it does not take them."""
    try:
        return manager.get_label_manager(dict(dataset_json))
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ProcessingError(f"{where}: labels: nnU-Net does not take these labels and regions: {reason}") from None


def network_of(
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    trainer: str,
    configuration: str,
    where: str,
    trust: bool = False,
):
    """Build the network of a trainer for plans; return it with its number of input channels, patch size and batch size.

    The weights are new.

    Args:
        plans: content of a plans file.
        dataset_json: content of dataset.json.
        trainer: name of the trainer's class.
        configuration: name of a configuration of the plans.
        where: how messages name the plans file.
        trust: whether the plans may have any network and layer imported and called, see `trusted_manager`.

    Raises:
        UsageError: nnU-Net does not find the trainer.
        NotTrustedError: the plans would have something imported or called that is not admitted.
        ProcessingError: no network can be built as the plans say.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    manager, settings = trusted_manager(plans, configuration, where, trust)
    planned = validate(
        _Sizes, settings.configuration, f"{where}: configurations.{configuration}", error=ProcessingError
    )
    try:
        with redirect_stdout(StringIO()):  # nnU-Net prints every module that it searches
            trainer_class = recursive_find_trainer_class_by_name(trainer)
    except (RuntimeError, AssertionError, TypeError):
        raise UsageError(f"nnU-Net finds no trainer {trainer} on this machine") from None
    heads = label_manager(manager, dataset_json, where).num_segmentation_heads
    channels = determine_num_input_channels(manager, settings, dict(dataset_json))
    try:
        network = trainer_class.build_network_architecture(
            manager, settings, channels, heads, enable_deep_supervision=False
        )
    except UserError as error:  # which does not know the file
        raise type(error)(f"{where}: {error}") from None
    except Exception as error:  # a constructor may raise anything where its arguments are wrong
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ProcessingError(
            f"{where}: configurations.{configuration}.architecture: {trainer} cannot build its network as this says ({reason})"
        ) from error
    return network, channels, tuple(planned.patch_size), planned.batch_size
