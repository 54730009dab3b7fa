"""nnU-Net's folders of trained models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from nnunet_glims.errors import ProcessingError, UsageError, UserError
from nnunet_glims.files import read_json_document
from nnunet_glims.nnunet.dataset_json import label_manager, read_dataset_json
from nnunet_glims.nnunet.plans.content import Axes, DatasetName, Millimetres, Side, check_plans
from nnunet_glims.nnunet.trust import trusted_manager
from nnunet_glims.validation import read_model, validate

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

PLANS_JSON, DATASET_JSON = "plans.json", "dataset.json"


class _DataSet(BaseModel):
    """What evaluating predictions needs of plans."""

    dataset_name: DatasetName


class _Plans(BaseModel):
    """What predicting needs of plans besides the configuration."""

    plans_name: str
    image_reader_writer: str
    transpose_forward: Axes
    transpose_backward: Axes
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]] = Field(default_factory=dict)


class _Sizes(BaseModel):
    """What costs depend on in a configuration, besides the architecture."""

    patch_size: list[Side]
    batch_size: Side


class _Resampling(BaseModel):
    """Arguments of nnU-Net's functions for resampling."""

    is_seg: bool = False
    order: Annotated[int, Field(ge=0, le=5)] = 3
    order_z: Annotated[int, Field(ge=0, le=5)] = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: Annotated[float, Field(gt=0)] = 3


class _Configuration(_Sizes):
    """What predicting needs of a configuration besides its architecture."""

    preprocessor_name: str
    spacing: list[Millimetres]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    resampling_fn_data: str
    resampling_fn_data_kwargs: _Resampling
    resampling_fn_seg: str
    resampling_fn_seg_kwargs: _Resampling
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: _Resampling


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
        """The content of plans.json; raises `ProcessingError` where it is damaged."""
        path = self.path / PLANS_JSON
        return check_plans(read_json_document(path, ProcessingError), str(path), ProcessingError)

    @cached_property
    def dataset_json(self) -> Mapping[str, Any]:
        """The content of dataset.json."""
        return read_dataset_json(self.path / DATASET_JSON)

    @cached_property
    def channels(self) -> list[str]:
        """The names of the channels in their order."""
        named = self.dataset_json["channel_names"]
        return [named[str(number)] for number in range(len(named))]

    @cached_property
    def dataset(self) -> str:
        """The name of the data set, DatasetNNN_NAME; nothing else is read of plans.json."""
        return read_model(_DataSet, self.path / PLANS_JSON, ProcessingError).dataset_name

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
        schemes, channels = len(planned.normalization_schemes), len(self.channels)
        if schemes != channels:
            raise ProcessingError(
                f"{key}.normalization_schemes: {schemes} for the {channels} channels of {DATASET_JSON}"
            )
        return manager, settings

    @cached_property
    def labels(self) -> LabelManager:
        """nnU-Net's object for the labels and regions; see `dataset_json.label_manager` for the errors.

        It raises `ProcessingError` where the outputs of the network cannot stand for the labels.
        """
        path = self.path / DATASET_JSON
        found = label_manager(self.plans, path)
        if not found.has_regions and list(found.all_labels) != list(range(len(found.all_labels))):
            numbers = ", ".join(map(str, found.all_labels[:10]))
            raise ProcessingError(f"{path}: labels: nnU-Net's labels are numbered 0, 1, 2 and so on, not {numbers}")
        return found

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
            self.plans,
            self.path / DATASET_JSON,
            self.trainer,
            self.configuration,
            str(self.path / PLANS_JSON),
            self.trust,
        )
        return network, channels, patch_size


def network_of(
    plans: Mapping[str, Any],
    dataset_json: Path,
    trainer: str,
    configuration: str,
    where: str,
    trust: bool = False,
):
    """Build the network of a trainer for plans; return it with its number of input channels, patch size and batch size.

    The weights are new.

    Args:
        plans: content of a plans file that was read with `check_plans`.
        dataset_json: path of the data set's dataset.json.
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
    heads = label_manager(plans, dataset_json).num_segmentation_heads
    channels = determine_num_input_channels(manager, settings, dict(read_dataset_json(dataset_json)))
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
