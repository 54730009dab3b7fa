"""Sort the files of a BraTS release (adult glioma) into cases, by the facts in `nnunet_glims.releases.brats`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nnunet_glims.datasets.cases import FilesOfCases, Problem, Release, SourceCase, plain_name
from nnunet_glims.errors import UsageError
from nnunet_glims.releases.brats import (
    CHANNELS,
    FILE_KINDS,
    FILE_NAME,
    LABELS,
    LICENCE,
    REGIONS_CLASS_ORDER,
    RELEASES,
    SEGMENTATION,
    STRAY_SEGMENTATION,
)
from nnunet_glims.validation import nearest

SPLITS: tuple[str, ...] = ("nnunet",)
"""Names of splits; other values of the option are files."""
_FILE = re.compile(FILE_NAME, re.IGNORECASE)
_STRAY = re.compile(STRAY_SEGMENTATION, re.IGNORECASE)


def read(
    files: Sequence[Path],
    release: str = "auto",
    channels: Sequence[str] = tuple(CHANNELS),
    where: str = "the release",
) -> Release:
    """Sort a release's files into cases.

    Args:
        files: all files of the release, in any folders.
        release: a key of `RELEASES`, or "auto" to derive it from the names of the cases.
        channels: keys of `CHANNELS`, in the order of the converted channels.
        where: how messages name the source of the files.

    Raises:
        UsageError: the release or a channel is unknown, there is no case among the files, or their names do not determine
            the release.
    """
    for channel in channels:
        if channel not in CHANNELS:
            raise UsageError(f"channel {channel!r} is unknown: {nearest(channel, list(CHANNELS))}")
    if len(set(channels)) != len(channels):
        raise UsageError(f"channels {', '.join(channels)}: each may be there once")
    if release != "auto" and release not in RELEASES:
        raise UsageError(f"release {release!r} is unknown: {nearest(release, list(RELEASES))}")
    found, problems, unused = _by_case(files)
    if not found:
        raise UsageError(
            f"{where}: none of {len(files)} files is named like BraTS (CASE_flair.nii.gz, CASE-t2f.nii.gz, …): "
            "give the folder or archive that has the cases"
        )
    if release == "auto":
        release = _release_of(list(found))
    published = RELEASES[release]
    cases = []
    for name, by_kind in sorted(found.items()):
        missing = [channel for channel in channels if channel not in by_kind]
        if missing:
            problems.append(Problem(name, "", f"no file for {', '.join(missing)}"))
            continue
        images = tuple(by_kind[channel] for channel in channels)
        found_patient = re.fullmatch(published.patient, name) if published.patient else None
        patient = found_patient["patient"] if found_patient else name
        cases.append(SourceCase(name, images, by_kind.get(SEGMENTATION), patient))
    return Release(
        name=f"BraTS {release}",
        cases=tuple(cases),
        channels=tuple(CHANNELS[channel] for channel in channels),
        labels=LABELS,
        regions_class_order=REGIONS_CLASS_ORDER,
        label_map=published.labels,
        reference=published.reference,
        licence=LICENCE,
        training_cases=published.training_cases,
        problems=tuple(problems),
        unused=tuple(unused),
    )


def _by_case(files: Sequence[Path]) -> tuple[dict[str, dict[str, Path]], list[Problem], list[Path]]:
    """Return case -> channel (or `SEGMENTATION`) -> file, the problems of files that cannot be sorted, and other files."""
    found = FilesOfCases()
    strays, others = [], []
    for file in sorted(files):
        name = plain_name(file)
        match = _FILE.fullmatch(name)
        if match is not None:
            found.add(match["case"], FILE_KINDS[match["kind"].lower()], file)
        elif _STRAY.fullmatch(name):
            strays.append(file)
        else:
            others.append(file)
    problems = []
    for stray in strays:
        beside = [name for name, kinds in found.by_case.items() if _folder(kinds) == stray.parent]
        without = [name for name in beside if SEGMENTATION not in found.by_case[name]]
        if len(without) == 1 or len(beside) == 1:
            found.add((without or beside)[0], SEGMENTATION, stray)
        else:
            problems.append(Problem("", str(stray), "a segmentation that belongs to no case beside it"))
    return dict(found.by_case), [*found.problems, *problems], others


def _folder(kinds: dict[str, Path]) -> Path:
    return next(iter(kinds.values())).parent


def _release_of(names: Sequence[str]) -> str:
    fitting = {
        release: [name for name in names if re.match(published.case_start, name, re.IGNORECASE)]
        for release, published in RELEASES.items()
    }
    possible = [release for release, of in fitting.items() if of]
    if len(possible) == 1 and len(fitting[possible[0]]) == len(names):
        return possible[0]
    if len(possible) > 1:
        examples = ", ".join(f"{fitting[release][0]} ({release})" for release in possible)
        raise UsageError(f"cases of several releases lie together: {examples}. Convert them one by one")
    unknown = next(name for name in names if not any(name in of for of in fitting.values()))
    raise UsageError(
        f"a case named {unknown} does not say of which release it is: name the release with --release {'|'.join(RELEASES)}"
    )
