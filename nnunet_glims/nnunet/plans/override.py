"""Plans overrides: published and recommended setups, from which new plans files are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from nnunet_glims.errors import UsageError, cut
from nnunet_glims.networks import Network, network_named, network_of_class
from nnunet_glims.nnunet.dataset_json import label_manager
from nnunet_glims.nnunet.plans.configuration import (
    BASE_PLANS,
    check_fits_strides,
    complete_configuration,
    planned_configuration,
    preprocess_command,
    read_base,
    read_plans,
    without_left_open,
)
from nnunet_glims.nnunet.plans.content import (
    MOST_PATCH_VOXELS,
    MOST_VOXELS,
    Millimetres,
    Side,
    checked_name,
)
from nnunet_glims.nnunet.plans.record import without_record, write_recorded
from nnunet_glims.training.recipes import Recipe
from nnunet_glims.validation import nearest, read_model

Triple = Annotated[list[Side], Field(min_length=3, max_length=3)]
Spacing = Annotated[list[Millimetres], Field(min_length=3, max_length=3)]

LARGEST_ARGUMENT = 4096
"""Largest whole number among a network's arguments, such as channels and layers: more would take minutes to build."""
MOST_IMAGE_VOXELS = 2**33
"""Largest number of voxels of a resampled image of usual size."""
ANY_TRAINER = "nnUNetTrainerGLIMS"
"""The trainer in the next command if any trainer can train with the plans."""
_OF_PREPROCESSING = ("spacing", "normalization_schemes", "use_mask_for_norm")
"""Keys of a configuration on which preprocessed data depend."""


class Override(BaseModel):
    """What a published or recommended setup changes in a plans configuration. What it leaves out stays as planned.

    Attributes:
        description: what the setup is for, in one line.
        source: what is from a paper, what is from the authors' code, and what is ours.
        network: name of a network in `nnunet_glims.networks`; None leaves the choice to the base plans and the trainer.
        network_arguments: constructor arguments of the network other than channels, classes, patch and strides.
        patch_size: voxels along nnU-Net's axes, which it transposes so that the coarsest axis comes first.
        batch_size: patches in a training step.
        spacing: mm along the same axes. Another spacing than the planned one needs preprocessed data of its own.
        normalization_schemes: nnU-Net's names, one for all channels or one for each channel. Other schemes than the
            planned ones need preprocessed data of their own.
        training: settings of `nnunet_glims.training.recipes.Recipe`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    source: str
    network: str | None = None
    network_arguments: dict[str, Any] = {}
    patch_size: Triple | None = None
    batch_size: Side | None = None
    spacing: Spacing | None = None
    normalization_schemes: Annotated[list[str], Field(min_length=1)] | None = None
    training: dict[str, Any] = {}


@dataclass(frozen=True)
class Applied:
    """A plans file that was written, and the next commands.

    Attributes:
        path: the file.
        was_written: whether the file was written; it is not if it already has this content.
        plans_name: name of the plans, for `-p`.
        trainer: name of the trainer, for `-tr`; None if any trainer can train with the plans.
        preprocess_command: nnU-Net's command for data that only these plans use; None if they use those of the base plans.
        is_preprocessed: whether the preprocessed data exist.
        next_commands: nnU-Net's commands: preprocessing if data are missing, then training.
    """

    path: Path
    was_written: bool
    plans_name: str
    trainer: str | None
    preprocess_command: str | None
    is_preprocessed: bool
    next_commands: tuple[str, ...]


def override_names() -> list[str]:
    """Return the names of the overrides that come with the package."""
    folder = files("nnunet_glims.plans_overrides")
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_override(name: str) -> tuple[str, Override]:
    """Load an override by its name, or from a path ending in .json; return its short name and its content.

    Network arguments are checked only when plans are written, because the check imports torch.

    Raises:
        UsageError: there is no such override, or it is wrong. The message names file and key.
    """
    if name.endswith(".json"):
        path = Path(name)
    elif name in override_names():
        path = Path(str(files("nnunet_glims.plans_overrides") / f"{name}.json"))
    else:
        raise UsageError(
            f"plans override {cut(name)!r} is unknown: {nearest(name, override_names())}. A file of your own must end in .json"
        )
    override = read_model(Override, path)
    if override.network is not None:
        try:
            recipe = network_named(override.network).recipe
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
    elif override.network_arguments:
        raise UsageError(f"{path}: network_arguments: these need a network to belong to, as `network`")
    else:
        recipe = Recipe()
    recipe.changed(override.training, f"{path}: training")
    _check_step(override.patch_size or (), override.batch_size or 1, str(path))
    checked_name(path.stem, f"{path}: ")
    return path.stem, override


def check_override(dataset_folder: Path, name: str, configuration: str, base: str) -> None:
    """Check that `apply_override` would make plans that can be trained; write nothing.

    Without base plans, only names and types of the network's arguments are checked.

    Raises:
        UsageError: see `apply_override`.
    """
    short_name, override = load_override(name)
    where = f"{short_name}.json"
    if (dataset_folder / f"{base}.json").exists():
        plans = read_base(dataset_folder, base)
        _changed(dataset_folder, plans, configuration, override, overridden_plans_name(short_name, base), where)
    elif override.network is not None and override.network_arguments:
        from nnunet_glims.nnunet.plans.building import check_arguments

        check_arguments(network_named(override.network), override.network_arguments, where, complete=False)


def overridden_plans_name(short_name: str, base: str = BASE_PLANS) -> str:
    """Return the name of the plans that an override makes from base plans."""
    return f"{base}_{short_name}"


def apply_override(
    dataset_folder: Path, name: str, configuration: str = "3d_fullres", base: str = BASE_PLANS, overwrite: bool = False
) -> Applied:
    """Write `<BASE>_<NAME>.json` to the folder of the base plans, or add a configuration to that file.

    All configurations of the file are made from the current base plans and override. If an existing one would change, this
    is refused without `overwrite`.

    Args:
        dataset_folder: folder of the data set in nnUNet_preprocessed.
        name: name of an override, or path of a .json file.
        configuration: name of the configuration to change.
        base: name of the base plans.
        overwrite: whether to replace an existing plans file with other content.

    Raises:
        UsageError: there are no such plans, configuration or override, the network cannot be built, or a file of the
            same name with other content exists.
    """
    short_name, override = load_override(name)
    plans_name = checked_name(overridden_plans_name(short_name, checked_name(base)))
    path = dataset_folder / f"{plans_name}.json"
    others = read_plans(path)["configurations"] if path.exists() else {}
    overrides = {**dict.fromkeys(others, override), configuration: override}
    return write_overridden(dataset_folder, base, plans_name, configuration, overrides, f"{short_name}.json", overwrite)


def write_overridden(
    dataset_folder: Path,
    base: str,
    plans_name: str,
    configuration: str,
    overrides: Mapping[str, Override],
    where: str,
    overwrite: bool,
) -> Applied:
    """Write plans whose configurations are those of base plans, changed by overrides.

    Args:
        dataset_folder: folder of the data set in nnUNet_preprocessed.
        base: name of the base plans.
        plans_name: name of the new plans.
        configuration: the requested configuration, which the result describes.
        overrides: configuration -> its override, for all configurations that the file is to have.
        where: how error messages name the override.
        overwrite: whether to replace an existing plans file with other content.

    Raises:
        UsageError: see `apply_override`.
    """
    for what, name in (("plans ", base), ("plans ", plans_name), ("configuration ", configuration)):
        checked_name(name, what)
    path = dataset_folder / f"{plans_name}.json"
    old = read_plans(path) if path.exists() else {}
    base_plans = read_base(dataset_folder, base)
    configurations = {}
    for name, override in overrides.items():
        try:
            configurations[name] = _changed(dataset_folder, base_plans, name, override, plans_name, where)
        except UsageError as error:
            if name == configuration:
                raise
            raise UsageError(
                f"{path}: its configuration {name!r} cannot be made from {base}.json and {where}: {error}. Delete the file, "
                "or choose another name"
            ) from None
    plans = {**without_record(base_plans), "plans_name": plans_name, "configurations": configurations}
    contents = {name: override.model_dump(exclude_defaults=True) for name, override in overrides.items()}
    was_written = write_recorded(path, plans, base, base_plans, contents, overwrite)
    return _applied(dataset_folder, plans, configuration, old, was_written)


def _changed(
    dataset_folder: Path,
    base_plans: Mapping[str, Any],
    configuration: str,
    override: Override,
    plans_name: str,
    where: str,
) -> dict[str, Any]:
    """Return one configuration of base plans, changed by an override, after checking that its network can be built."""
    planned = planned_configuration(base_plans, configuration)
    changed = {**planned, **_changes(planned, override, where)}
    _check_trainable(changed, where)
    if any(changed[key] != planned[key] for key in _OF_PREPROCESSING):
        changed["data_identifier"] = f"{plans_name}_{configuration}"
    network = _network_of(planned, override)
    if network is None:
        check_fits_strides(changed, where)
        return changed
    arguments = override.network_arguments
    if override.network is None:  # the base names the network
        arguments = planned["architecture"]["arch_kwargs"]
        if any(changed[key] != planned[key] for key in ("patch_size", "spacing")):
            arguments = without_left_open(arguments)
    changed["architecture"] = {"network_class_name": network.path, "arch_kwargs": dict(arguments)}
    if override.network is not None:
        changed["training"] = override.training
    changed = complete_configuration(changed, network, {}, where)
    _check_network(dataset_folder, base_plans, network, changed, where)
    return changed


def _check_trainable(changed: Mapping[str, Any], where: str) -> None:
    """Raise `UsageError` for a patch, spacing or batch with which nnU-Net's preprocessing or any training would fail."""
    _check_step(changed["patch_size"], changed["batch_size"], where)
    image = changed["median_image_size_in_voxels"]
    if min(image) < 1 or prod(image) > MOST_IMAGE_VOXELS:
        raise UsageError(
            f"{where}: spacing: with {times(changed['spacing'])} mm the median image has {times(image)} voxels: no side may be "
            f"below 1, nor all together above {MOST_IMAGE_VOXELS:,}"
        )


def _check_step(patch: Sequence[int], batch: int, where: str) -> None:
    if prod(patch) > MOST_PATCH_VOXELS or prod(patch) * batch > MOST_VOXELS:
        raise UsageError(
            f"{where}: patch_size: {batch} patches of {times(patch)} voxels can be trained on no GPU: a patch may have "
            f"{MOST_PATCH_VOXELS:,} voxels, and all of a step {MOST_VOXELS:,}"
        )


def _network_of(planned: Mapping[str, Any], override: Override) -> Network | None:
    """Return the network that the override names, else the one that the base plans name; None if neither names one."""
    if override.network is not None:
        return network_named(override.network)
    return network_of_class(planned.get("architecture", {}).get("network_class_name", ""))


def _check_network(
    dataset_folder: Path, plans: Mapping[str, Any], network: Network, configuration: Mapping[str, Any], where: str
) -> None:
    from nnunet_glims.nnunet.plans.building import check_network

    _check_sizes(configuration["architecture"]["arch_kwargs"], where)
    described = dataset_folder / "dataset.json"
    classes = label_manager(plans, described).num_segmentation_heads if described.exists() else 2
    check_network(network, configuration, len(configuration["normalization_schemes"]), classes, where)


def _check_sizes(value: Any, where: str) -> None:
    """Raise `UsageError` for a whole number among a network's arguments that is too large."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for one in inner:
        _check_sizes(one, where)
    if isinstance(value, int) and abs(value) > LARGEST_ARGUMENT:
        raise UsageError(f"{where}: network_arguments: {value} is too large: {LARGEST_ARGUMENT} is the largest number")


def times(sizes: Sequence[float]) -> str:
    """Return sizes along the axes as text, such as 96×96×64."""
    return "×".join(f"{size:g}" for size in sizes)


def _applied(
    dataset_folder: Path, plans: Mapping[str, Any], configuration: str, old: Mapping[str, Any], was_written: bool
) -> Applied:
    """Return the result for plans that were written; `old` is the previous content of the file, which may be empty."""
    written = plans["configurations"][configuration]
    plans_name, identifier = plans["plans_name"], written["data_identifier"]
    architecture = written.get("architecture", {})
    network = network_of_class(architecture.get("network_class_name", ""))
    trainer = None if network is None else network.trainer_for(architecture["arch_kwargs"])
    before = old.get("configurations", {}).get(configuration, written)
    fits = all(before[key] == written[key] for key in _OF_PREPROCESSING)
    is_preprocessed = fits and (dataset_folder / identifier).is_dir()
    preprocess = preprocess_command(plans, configuration)
    train = f"nnUNetv2_train {dataset_folder.name} {configuration} 0 -tr {trainer or ANY_TRAINER} -p {plans_name}"
    return Applied(
        path=dataset_folder / f"{plans_name}.json",
        was_written=was_written,
        plans_name=plans_name,
        trainer=trainer,
        preprocess_command=preprocess if identifier == f"{plans_name}_{configuration}" else None,
        is_preprocessed=is_preprocessed,
        next_commands=(train,) if is_preprocessed else (preprocess, train),
    )


def _changes(planned: Mapping[str, Any], override: Override, where: str) -> dict[str, Any]:
    changes: dict[str, Any] = {
        key: value for key in ("patch_size", "batch_size", "spacing") if (value := getattr(override, key)) is not None
    }
    if override.training:
        changes["training"] = override.training
    if override.spacing is not None:
        changes["median_image_size_in_voxels"] = [
            round(size * old / new, 1)
            for size, old, new in zip(
                planned["median_image_size_in_voxels"], planned["spacing"], override.spacing, strict=True
            )
        ]
    if override.normalization_schemes is not None:
        channels = len(planned["normalization_schemes"])
        schemes = override.normalization_schemes
        if len(schemes) not in (1, channels):
            raise UsageError(
                f"{where}: normalization_schemes: {len(schemes)} given for a data set of {channels} channels"
            )
        _check_normalization(schemes, where)
        changes["normalization_schemes"] = schemes * (channels // len(schemes))
        changes["use_mask_for_norm"] = [False] * channels
    return changes


def _check_normalization(schemes: Sequence[str], where: str) -> None:
    """Raise `UsageError` for a scheme that nnU-Net does not find when it preprocesses."""
    import nnunetv2.preprocessing.normalization as package
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
        ImageNormalization,
        channel_name_to_normalization_mapping,
    )
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    for scheme in schemes:
        found = recursive_find_python_class(package.__path__[0], scheme, package.__name__)
        if not (isinstance(found, type) and issubclass(found, ImageNormalization)):
            known = sorted(kind.__name__ for kind in channel_name_to_normalization_mapping.values())
            raise UsageError(
                f"{where}: normalization_schemes: nnU-Net has no normalisation {scheme!r}: {nearest(scheme, known)}"
            )
