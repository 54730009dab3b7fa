"""Reads BraTS releases 2018, 2020, 2021 and 2023 (adult glioma): sorts their files into cases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nnunet_glims.datasets.cases import Problem, Release, SourceCase
from nnunet_glims.errors import UsageError
from nnunet_glims.releases.brats import CHANNELS, LABELS, REGIONS_CLASS_ORDER, RELEASES
from nnunet_glims.validation import nearest

_KINDS = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}  # 2023's names of the channels
_FILE = re.compile(r"(?P<case>.+)[_-](?P<kind>t1ce|t1n|t1c|t1|t2w|t2f|t2|flair|seg)\.nii(\.gz)?", re.IGNORECASE)
_STRAY_LABEL = re.compile(r".*_segm\.nii(\.gz)?", re.IGNORECASE)  # W39_1998.09.19_Segm.nii in BraTS 2020


def read(files: Sequence[Path], release: str = "auto", channels: Sequence[str] = tuple(CHANNELS)) -> Release:
    """Sort a release's files into cases.

    Args:
        files: all files of the release, in whatever folders.
        release: a key of `RELEASES`, or "auto" to go by the cases' names.
        channels: keys of `CHANNELS`, in the order wanted.

    Raises:
        UsageError: no such release or channel, no case among the files, or a release that cannot be told.
    """
    for channel in channels:
        if channel not in CHANNELS:
            raise UsageError(f"channel {channel!r} is unknown: {nearest(channel, list(CHANNELS))}")
    if len(set(channels)) != len(channels):
        raise UsageError(f"channels {', '.join(channels)}: each may be there once")
    if release != "auto" and release not in RELEASES:
        raise UsageError(f"release {release!r} is unknown: {nearest(release, list(RELEASES))}")
    found, problems = _by_case(files)
    if not found:
        raise UsageError(
            f"none of {len(files)} files is named like BraTS (CASE_flair.nii.gz, CASE-t2f.nii.gz, …): "
            "give the folder or archive that has the cases"
        )
    if release == "auto":
        release = _release_of(list(found))
    _, label_map, reference = RELEASES[release]
    cases = []
    for name, by_kind in sorted(found.items()):
        missing = [channel for channel in channels if channel not in by_kind]
        if missing:
            problems.append(Problem(name, "", f"no file for {', '.join(missing)}"))
            continue
        images = tuple(by_kind[channel] for channel in channels)
        patient = name.rsplit("-", 1)[0] if release == "2023" else name
        cases.append(SourceCase(name, images, by_kind.get("seg"), patient))
    return Release(
        name=f"BraTS {release}",
        cases=tuple(cases),
        channels=tuple(CHANNELS[channel] for channel in channels),
        labels=LABELS,
        regions_class_order=REGIONS_CLASS_ORDER,
        label_map=label_map,
        reference=reference,
        licence="terms of the challenge, to which one agrees for the download",
        problems=tuple(problems),
    )


def _by_case(files: Sequence[Path]) -> tuple[dict[str, dict[str, Path]], list[Problem]]:
    """Case -> channel or "seg" -> file, and files there twice."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    problems = []
    strays = []
    for file in sorted(files):
        match = _FILE.fullmatch(file.name)
        if match is None:
            if _STRAY_LABEL.fullmatch(file.name):
                strays.append(file)
            continue
        kind = _KINDS.get(match["kind"].lower(), match["kind"].lower())
        if kind in found[match["case"]]:
            other = found[match["case"]][kind]
            problems.append(Problem(match["case"], str(file), f"there is also {other}: a case may be there once"))
        else:
            found[match["case"]][kind] = file
    for stray in strays:
        beside = [name for name, kinds in found.items() if "seg" not in kinds and _folder(kinds) == stray.parent]
        if len(beside) == 1:
            found[beside[0]]["seg"] = stray
        else:
            problems.append(Problem("", str(stray), "a segmentation that belongs to no case beside it"))
    return dict(found), problems


def _folder(kinds: dict[str, Path]) -> Path:
    return next(iter(kinds.values())).parent


def _release_of(names: Sequence[str]) -> str:
    fitting = {
        release: [name for name in names if re.match(start, name)] for release, (start, _, _) in RELEASES.items()
    }
    told = [release for release, of in fitting.items() if of]
    if len(told) == 1 and len(fitting[told[0]]) == len(names):
        return told[0]
    if len(told) > 1:
        examples = ", ".join(f"{fitting[release][0]} ({release})" for release in told)
        raise UsageError(f"cases of several releases lie together: {examples}. Convert them one by one")
    unknown = next(name for name in names if not any(name in of for of in fitting.values()))
    raise UsageError(
        f"the release cannot be told from a case named {unknown}: name it with --release {'|'.join(RELEASES)}"
    )
