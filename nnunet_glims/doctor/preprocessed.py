"""The preprocessed data: whether the files of every case are there and whole, and have the channels of dataset.json."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_glims.doctor.findings import Finding, Findings, isolated, some

TOPIC = "preprocessed data"
_SUFFIXES = {".b2nd": ("_seg.b2nd", ".pkl"), ".npz": (".pkl",)}
"""End of the name of a case's image -> ends of the names of its other files."""


def check(
    folder: Path, plans: Mapping[str, Any], configuration: str, described: Mapping[str, Any] | None
) -> Findings[set[str] | None]:
    """Yield findings about the data of a configuration; return the names of its cases, or None where there are no data."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_glims.nnunet.plans.configuration import preprocess_command

    planned = PlansManager(dict(plans)).get_configuration(configuration).configuration
    again = preprocess_command(plans, configuration)
    yield from isolated("channels", _check_channels, planned, described)
    data = folder / planned["data_identifier"]
    if not data.is_dir():
        yield Finding(TOPIC, "fail", f"{data}: there is no such folder", again)
        return None
    names = {path.name for path in data.iterdir()}
    ending = ".b2nd" if any(name.endswith(".b2nd") for name in names) else ".npz"
    cases = {
        name.removesuffix(ending) for name in names if name.endswith(ending) and not name.endswith(f"_seg{ending}")
    }
    if not cases:
        yield Finding(TOPIC, "fail", f"{data}: there are no cases in it", again)
        return None
    problems = [
        *_missing(cases, names, ending),
        *(text for case in sorted(cases) if (text := _damage(data / f"{case}{ending}", planned, described))),
        *(text for case in sorted(cases) if ending == ".b2nd" and (text := _damage(data / f"{case}_seg{ending}"))),
    ]
    if problems:
        yield Finding(TOPIC, "fail", f"{data}: {some(problems)}", f"delete what is named, then {again}")
    else:
        yield Finding(TOPIC, "ok", f"{data.name}: {len(cases)} cases")
    return cases


def _missing(cases: set[str], names: set[str], ending: str) -> list[str]:
    return [
        f"{case} has no {case}{suffix}"
        for case in sorted(cases)
        for suffix in _SUFFIXES[ending]
        if f"{case}{suffix}" not in names
    ]


def _damage(
    file: Path, planned: Mapping[str, Any] | None = None, described: Mapping[str, Any] | None = None
) -> str | None:
    """Return what is wrong with a file of voxels; its header is read, not its voxels. A missing file is told elsewhere."""
    if not file.exists():
        return None
    if file.suffix == ".npz":
        return None if zipfile.is_zipfile(file) else f"{file.name} is damaged"
    import blosc2

    try:
        shape = blosc2.open(urlpath=str(file), mode="r").shape
    except Exception:  # the library has errors of several kinds for files that are not whole
        return f"{file.name} is damaged"
    channels = None if described is None else len(described["channel_names"])
    if planned is not None and channels is not None and shape[0] != channels:
        return f"{file.name} has {shape[0]} channels, dataset.json {channels}"
    return None


def _check_channels(planned: Mapping[str, Any], described: Mapping[str, Any] | None) -> Findings[None]:
    """Yield where the plans are for another number of channels than dataset.json has."""
    schemes = len(planned["normalization_schemes"])
    if described is not None and schemes != len(described["channel_names"]):
        channels = len(described["channel_names"])
        state = f"dataset.json has {channels} channels, the plans have normalisations for {schemes}"
        yield Finding("channels", "fail", state, "correct channel_names in dataset.json, or plan and preprocess again")
