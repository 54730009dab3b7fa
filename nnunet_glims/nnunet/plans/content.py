"""What may stand in nnU-Net's plans files: types, limits, and links between configurations. Other keys are left alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from nnunet_glims.documents import Document
from nnunet_glims.errors import UsageError, UserError, cut
from nnunet_glims.validation import list_problems, nearest, validate

MOST_PATCH_VOXELS = 2**27
"""Largest number of voxels of a patch, 512³: a feature map of 32 channels takes 16 GiB."""
MOST_VOXELS = 2**30
"""Largest number of voxels of all patches of a step."""
MOST_MM = 10_000
"""Largest spacing in mm."""

FileName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$", max_length=200)]


def checked_name(name: str, what: str = "") -> str:
    """Return the name of plans or of a configuration unchanged; it is part of the names of files and folders.

    Args:
        name: the name.
        what: what messages put before it, such as an option.

    Raises:
        UsageError: it has other characters than letters, digits and . _ + -, or `__`, at which nnU-Net splits the names of
            model folders.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,119}", name) or "__" in name:
        raise UsageError(
            f"{what}{cut(name)!r} can be no part of a file's name: letters, digits and . _ + - are allowed, and no __"
        )
    return name


DatasetName = Annotated[str, Field(pattern=r"^Dataset[0-9]{3}_[^/\\]+$", max_length=200)]
PlansName = Annotated[str, AfterValidator(lambda name: checked_name(name))]
Side = Annotated[int, Field(ge=1, le=MOST_VOXELS)]
ImageSide = Annotated[float, Field(gt=0, le=100_000)]
Millimetres = Annotated[float, Field(gt=0, le=MOST_MM)]


def _check_axes(axes: list[int]) -> list[int]:
    if sorted(axes) != [0, 1, 2]:
        raise ValueError(f"the axes 0, 1 and 2 are wanted in some order, not {axes}")
    return axes


Axes = Annotated[list[int], Field(min_length=3, max_length=3), AfterValidator(_check_axes)]


_LEFT_OUT: Any = None
"""Value of keys that may be left out, but not be null."""


class Architecture(BaseModel):
    """The network of a configuration: import path of its class, and its constructor arguments."""

    model_config = ConfigDict(extra="allow")

    network_class_name: str
    arch_kwargs: dict[str, Any]
    requires_import: list[str] = Field(_LEFT_OUT, alias="_kw_requires_import")


class Resampling(BaseModel):
    """Arguments of nnU-Net's functions that resample images and label maps."""

    model_config = ConfigDict(extra="allow")

    is_seg: bool = _LEFT_OUT
    order: Annotated[int, Field(ge=0, le=5)] = _LEFT_OUT
    order_z: Annotated[int, Field(ge=0, le=5)] = _LEFT_OUT
    force_separate_z: bool | None = None


class Configuration(BaseModel):
    """A configuration of plans, such as 3d_fullres. One that inherits from another may leave out every key."""

    model_config = ConfigDict(extra="allow")

    inherits_from: str = _LEFT_OUT
    data_identifier: FileName = _LEFT_OUT
    preprocessor_name: str = _LEFT_OUT
    batch_dice: bool = _LEFT_OUT
    resampling_fn_data: str = _LEFT_OUT
    resampling_fn_data_kwargs: Resampling = _LEFT_OUT
    resampling_fn_seg: str = _LEFT_OUT
    resampling_fn_seg_kwargs: Resampling = _LEFT_OUT
    resampling_fn_probabilities: str = _LEFT_OUT
    resampling_fn_probabilities_kwargs: Resampling = _LEFT_OUT
    batch_size: Annotated[int, Field(ge=1, le=MOST_VOXELS)] = _LEFT_OUT
    patch_size: Annotated[list[Side], Field(min_length=2, max_length=3)] = _LEFT_OUT
    spacing: Annotated[list[Millimetres], Field(min_length=2, max_length=3)] = _LEFT_OUT
    median_image_size_in_voxels: Annotated[list[ImageSide], Field(min_length=2, max_length=3)] = _LEFT_OUT
    normalization_schemes: list[str] = _LEFT_OUT
    use_mask_for_norm: list[bool] = _LEFT_OUT
    architecture: Architecture = _LEFT_OUT
    training: dict[str, Any] = _LEFT_OUT
    next_stage: str | list[str] = _LEFT_OUT
    previous_stage: str = _LEFT_OUT


class Plans(BaseModel):
    """nnU-Net's plans."""

    model_config = ConfigDict(extra="allow")

    plans_name: FileName
    dataset_name: DatasetName = _LEFT_OUT
    image_reader_writer: str = _LEFT_OUT
    transpose_forward: Axes = _LEFT_OUT
    transpose_backward: Axes = _LEFT_OUT
    experiment_planner_used: str = _LEFT_OUT
    label_manager: str = _LEFT_OUT
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]] = _LEFT_OUT
    original_median_spacing_after_transp: Annotated[list[Millimetres], Field(min_length=3, max_length=3)] = _LEFT_OUT
    original_median_shape_after_transp: Annotated[list[ImageSide], Field(min_length=3, max_length=3)] = _LEFT_OUT
    configurations: Annotated[dict[str, Configuration], Field(min_length=1)]


def check_plans(document: Document, where: str, error: type[UserError] = UsageError) -> dict[str, Any]:
    """Return the content of a plans file that was read.

    Args:
        document: the file's content and lines.
        where: how messages name the file.
        error: class of the errors.

    Raises:
        UserError: of the class `error`: a value has a wrong type or is beyond its limits, a patch has too many voxels, or
            a configuration inherits from itself or from none that exists. The message lists every problem.
    """
    validate(Plans, document.content, where, document.line_of, error)
    problems = _problems(document.content["configurations"])
    if problems:
        raise error(list_problems(problems, where, document.line_of))
    return document.content


def resolved(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits from others; an unknown one is empty."""
    own = configurations.get(name, {})
    inherited = resolved(configurations, own["inherits_from"]) if own.get("inherits_from") else {}
    return {**inherited, **own}


def _problems(configurations: Mapping[str, Any]) -> list[tuple[list[Any], str]]:
    """Return the keys and the text of what is wrong in how configurations stand to each other, or how values do in one."""
    problems = [
        (["configurations", name, "inherits_from"], wrong)
        for name in configurations
        if (wrong := _wrong_parent(configurations, name)) is not None
    ]
    for name in () if problems else configurations:
        whole = resolved(configurations, name)
        patch, spacing = whole.get("patch_size"), whole.get("spacing")
        where = ["configurations", name, "patch_size"]
        if patch and prod(patch) > MOST_PATCH_VOXELS:
            problems.append((where, f"it has {prod(patch):,} voxels, and may have {MOST_PATCH_VOXELS:,}"))
        if patch and prod(patch) * (whole.get("batch_size") or 1) > MOST_VOXELS:
            text = f"patches of {prod(patch):,} voxels in this number are more than {MOST_VOXELS:,} voxels"
            problems.append((["configurations", name, "batch_size"], text))
        if patch and spacing and len(spacing) < len(patch):
            problems.append((where, f"it has {len(patch)} sides, and spacing has {len(spacing)}"))
        schemes, masks = whole.get("normalization_schemes"), whole.get("use_mask_for_norm")
        if schemes is not None and masks is not None and len(schemes) != len(masks):
            text = f"it has {len(masks)} values, and normalization_schemes has {len(schemes)}: one each a channel is wanted"
            problems.append((["configurations", name, "use_mask_for_norm"], text))
    return problems


def _wrong_parent(configurations: Mapping[str, Any], name: str) -> str | None:
    """Return what is wrong with what a configuration inherits from; None if nothing is."""
    seen = [name]
    while parent := configurations[seen[-1]].get("inherits_from"):
        if parent not in configurations:
            return f"there is no configuration {parent!r}: {nearest(parent, list(configurations))}"
        if parent in seen:
            return f"configurations inherit from each other in a circle: {' from '.join([*seen, parent])}"
        seen.append(parent)
    return None
