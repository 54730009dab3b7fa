"""GIPL (.gipl): 256 bytes of header, then voxels without a checksum."""

from __future__ import annotations

import struct
from pathlib import Path

from nnunet_glims.image_formats.content import Damaged, check_length

BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
"""GIPL's code of a type with one number a voxel -> its size in bytes."""
_HEADER = 256
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)


def check(file: Path) -> None:
    """Raise `Damaged` unless a GIPL file has the length that its header states; `OSError` where it cannot be read."""
    with file.open("rb") as opened:
        head = opened.read(_HEADER)
    if len(head) < _HEADER or struct.unpack_from(">I", head, 252)[0] not in _MAGIC:
        raise Damaged("this is no GIPL file")
    *shape, kind = struct.unpack_from(">5H", head)
    if kind not in BYTES:
        raise Damaged(f"the header has type {kind}, which is unknown")
    check_length(file.stat().st_size - _HEADER, [max(length, 1) for length in shape], BYTES[kind])
