"""Record what plans files of this package were made from, and never replace other content silently.

The record is in the plans file itself, under a key that nnU-Net ignores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nnunet_glims import __version__
from nnunet_glims.errors import UsageError
from nnunet_glims.files import remove_leftovers, write_json
from nnunet_glims.nnunet.plans.configuration import read_plans
from nnunet_glims.validation import validate

KEY = "nnunet_glims"
LONGEST_VALUE = 80
"""Largest number of characters of a value in a message."""
_ABSENT = object()


class Record(BaseModel):
    """What a plans file was made from.

    Attributes:
        version: version of this package.
        base: name of the base plans.
        base_sha256: SHA-256 of their content, see `fingerprint`.
        overrides: configuration -> content of its override.
    """

    version: str
    base: str
    base_sha256: str
    overrides: dict[str, dict[str, Any]]


def read_record(plans: Mapping[str, Any], where: Path) -> Record | None:
    """Return the record in plans; None if they have none. Raise `UsageError` that names `where` for a damaged record."""
    return validate(Record, plans[KEY], f"{where}: {KEY}") if KEY in plans else None


def without_record(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Return plans without the record, as nnU-Net sees them."""
    return {key: value for key, value in plans.items() if key != KEY}


def fingerprint(plans: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plans without the record; the order of keys does not count."""
    return sha256(json.dumps(without_record(plans), sort_keys=True).encode()).hexdigest()


def recorded_overrides(path: Path) -> dict[str, dict[str, Any]]:
    """Return configuration -> content of its override, from the record of a plans file; empty if there is no record."""
    record = read_record(read_plans(path), path) if path.exists() else None
    return {} if record is None else record.overrides


def first_difference(before: Any, now: Any, key: str = "") -> tuple[str, str, str] | None:
    """Return the first difference of two JSON values as (dotted key, value before, value now); None if they are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in [*before, *(name for name in now if name not in before)]:
            inner = f"{key}.{name}" if key else str(name)
            difference = first_difference(before.get(name, _ABSENT), now.get(name, _ABSENT), inner)
            if difference is not None:
                return difference
        return None
    return None if before == now else (key, _shown(before), _shown(now))


def _shown(value: Any) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def write_recorded(
    path: Path,
    plans: Mapping[str, Any],
    base: str,
    base_plans: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]],
    overwrite: bool,
) -> bool:
    """Write plans with a record of what they were made from. A configuration that the file lacks is added to it.

    Args:
        path: path of the plans file.
        plans: content to write, without a record, with all configurations that the file is to have.
        base: name of the plans that these were made from.
        base_plans: their content.
        overrides: configuration -> content of its override.
        overwrite: whether to replace a file with other content.

    Returns:
        Whether the file was written; it is not if it already has this content.

    Raises:
        UsageError: the file has other content; the message names the first value that differs, before and now, and why.
    """
    remove_leftovers(path)
    record = Record(
        version=__version__,
        base=base,
        base_sha256=fingerprint(base_plans),
        overrides={configuration: dict(override) for configuration, override in overrides.items()},
    )
    new = json.loads(json.dumps({**plans, KEY: record.model_dump()}))
    old = read_plans(path) if path.exists() else None
    if old is not None and not overwrite:
        added = {name for name in new["configurations"] if name not in old["configurations"]}
        comparable = {name: value for name, value in new["configurations"].items() if name not in added}
        difference = first_difference(without_record(old), {**without_record(new), "configurations": comparable})
        if difference is not None:
            key, before, now = difference
            raise UsageError(
                f"{path}: {key} is {before} in this file and would be {now} now: {_reason(read_record(old, path), record)}. "
                "Replace the file with --overwrite, or keep it by choosing another name; models that were trained with it "
                "belong to its old content"
            )
    if old == new:
        return False
    write_json(path, new)
    return True


def _reason(old: Record | None, new: Record) -> str:
    """Return why a plans file differs from what would be written now, according to its record."""
    if old is None:
        return "there is another plans file of that name, which does not say what it was made from"
    if old.base != new.base:
        return f"it was made from {old.base}, not from {new.base}"
    if old.base_sha256 != new.base_sha256:
        return f"{new.base}.json has changed since, for example because nnU-Net planned again"
    if any(new.overrides.get(configuration) != override for configuration, override in old.overrides.items()):
        return "the settings it was made with have changed since"
    if old.version != new.version:
        return f"it was written by release {old.version}, this is {new.version}"
    return "it was changed by hand"
