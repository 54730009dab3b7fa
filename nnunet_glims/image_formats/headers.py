"""Headers that are lines of text, as MetaImage and NRRD have them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_glims.image_formats.content import Damaged

LONGEST_HEADER = 2**20


def numbers(fields: Mapping[str, str], key: str, kind: type = float) -> list[float]:
    """Return the numbers in a field; commas and parentheses count as spaces, and "none" is left out.

    Raises:
        Damaged: the field is missing, or holds something else.
    """
    if key not in fields:
        raise Damaged(f"the header has no {key}")
    words = fields[key].translate(str.maketrans("(),", "   ")).split()
    try:
        return [kind(word) for word in words if word != "none"]
    except ValueError:
        raise Damaged(f"the header has {key} {fields[key][:60]!r}, which are no numbers") from None


def sizes(fields: Mapping[str, str], key: str, axes: str) -> Sequence[int]:
    """Return the number of voxels along each axis; `key` and `axes` name the fields of the sizes and of their number.

    Raises:
        Damaged: a field is missing, or the sizes are not as many positive numbers as there are axes.
    """
    found = [int(size) for size in numbers(fields, key, int)]
    if numbers(fields, axes, int) != [len(found)] or min(found, default=0) < 1:
        raise Damaged(f"the header has {axes} {fields[axes][:60]!r} and {key} {fields[key][:60]!r}")
    return found


def check_known(fields: Collection[str], known: Collection[str]) -> None:
    """Raise `Damaged` for an unknown field that differs from a known one in a single character."""
    for field in set(fields) - set(known):
        for name in known:
            if len(name) == len(field) and sum(a != b for a, b in zip(name, field, strict=True)) == 1:
                raise Damaged(f"the header has the unknown field {field!r}: {name!r} is damaged")


def data_file(header: Path, name: str) -> bytes:
    """Return the content of the file beside a header that holds its voxels.

    Raises:
        Damaged: the name is a path or a pattern, or there is no such file.
    """
    if Path(name).name != name or "%" in name or name in ("LIST", ""):
        raise Damaged(f"its voxels are in {name!r}, not in one file beside it: convert it to .nii.gz or .mha")
    beside = header.parent / name
    try:
        if not beside.is_file():
            raise OSError
        return beside.read_bytes()
    except (OSError, ValueError):
        raise Damaged(f"the file of its voxels, {name!r}, is not beside it or cannot be read") from None
