"""The cases that are predicted or explained: a folder of CASE_0000.nii.gz, …, or channel files that are named one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_glims.errors import UsageError


@dataclass(frozen=True)
class InputCase:
    """An image to predict: its name and a file a channel."""

    name: str
    files: tuple[Path, ...]


def find_input_cases(inputs: Sequence[Path], ending: str, channels: Sequence[str]) -> list[InputCase]:
    """The cases in a folder of CASE_0000.nii.gz, …, or those whose channels are given as files.

    Args:
        inputs: a folder, the files of one case in the channels' order, or files of several cases by their names.
        ending: of the files' names.
        channels: their names.

    Raises:
        UsageError: no images, a channel too many or too few, files that do not exist.
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
