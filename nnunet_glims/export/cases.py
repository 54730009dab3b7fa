"""Find and read the images to predict or to explain: a folder of CASE_0000.nii.gz, …, or channel files given one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.geometry import Geometry
from nnunet_glims.images import is_finite, not_finite, read_image


@dataclass(frozen=True)
class InputCase:
    """A case to predict.

    Attributes:
        name: name of the case.
        files: one file per channel, in the order of the channels.
    """

    name: str
    files: tuple[Path, ...]


def find_input_cases(inputs: Sequence[Path], ending: str, channels: Sequence[str]) -> list[InputCase]:
    """Return the cases of a folder of CASE_0000.nii.gz, …, or those whose channel files are given.

    Args:
        inputs: a folder; or the channel files of one case, in the order of the channels; or the channel files of
            several cases, which are told apart by their names.
        ending: the ending that the files' names must have, such as ".nii.gz".
        channels: names of the channels, for messages.

    Raises:
        UsageError: there are no images, a case has too many or too few channels, or a file does not exist.
    """
    count = len(channels)
    missing = [path for path in inputs if not path.exists()]
    if missing:
        raise UsageError(f"{missing[0]}: there is no such file or folder")
    if len(inputs) == 1 and inputs[0].is_dir():
        return _cases_among(sorted(inputs[0].iterdir()), inputs[0], ending, channels)
    if any(path.is_dir() for path in inputs):
        raise UsageError("give one folder of cases, or the files of one case's channels, not several folders")
    if len(inputs) > count:
        cases = _cases_among(inputs, inputs[0].parent, ending, channels)
        if sum(len(case.files) for case in cases) != len(inputs):
            raise UsageError(
                f"not each of the {len(inputs)} files is named CASE_0000{ending} of a case and channel of its own"
            )
        return cases
    if len(inputs) != count:
        raise UsageError(f"{len(inputs)} files were given: the model takes {count} channels a case, {_named(channels)}")
    name = inputs[0].name
    if not name.endswith(ending):
        raise UsageError(f"{inputs[0]}: the model was trained on {ending} files: convert the images")
    return [InputCase(re.sub(r"_\d{4}$", "", name.removesuffix(ending)), tuple(inputs))]


def _cases_among(paths: Sequence[Path], folder: Path, ending: str, channels: Sequence[str]) -> list[InputCase]:
    count = len(channels)
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    found: dict[str, dict[int, Path]] = {}
    for path in paths:
        match = pattern.fullmatch(path.name)
        if match and not path.name.startswith("."):
            found.setdefault(match[1], {})[int(match[2])] = path
    if not found:
        raise UsageError(f"{folder}: no images named CASE_0000{ending} are in there")
    for name, files in found.items():
        for channel in range(count):
            if channel not in files:
                expected = folder / f"{name}_{channel:04d}{ending}"
                raise UsageError(f"{expected}: case {name} lacks this channel; the model takes {_named(channels)}")
        if len(files) > count:
            raise UsageError(f"{files[max(files)]}: the model takes {count} channels a case, {_named(channels)}")
    return [InputCase(name, tuple(files[channel] for channel in range(count))) for name, files in found.items()]


def _named(channels: Sequence[str]) -> str:
    return ", ".join(f"{index:04d} = {name}" for index, name in enumerate(channels))


def read_case(files: Sequence[Path]) -> tuple[np.ndarray, Geometry]:
    """Read the channel files of a case: the image (channels, z, y, x) in float32, and its geometry.

    Raises:
        ProcessingError: a file is damaged, cut off or no image, or has voxels that are not finite.
        UsageError: a file is no 3D image, or the channels have different grids.
    """
    images = [read_image(file) for file in files]
    first = images[0].geometry
    for file, image in zip(files, images, strict=True):
        difference = image.geometry.difference(first)
        if difference:
            raise UsageError(f"{file}: {difference} like {files[0].name}: resample the channels to one grid")
    with np.errstate(over="ignore"):
        case = np.stack([image.voxels.astype(np.float32) for image in images])
    for file, channel in zip(files, case, strict=True):
        if not is_finite(channel):
            raise ProcessingError(f"{file}: {not_finite(channel)} in float32, which networks compute with: rescale it")
    return case, first
