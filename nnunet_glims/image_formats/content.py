"""What all file formats share: the error of a damaged file, and decompression that checks sums and lengths."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from math import prod

GZIP = 31
ZLIB_OR_GZIP = 47
"""Values of zlib's argument `wbits`: which header and checksum compressed data have."""


class Damaged(ValueError):
    """Raised where a file is not a whole image; the message says what is wrong, without the file's name."""


def inflate(data: bytes, wbits: int, length: int | None = None) -> bytes:
    """Decompress data to their end and check their checksum. Zeros may follow, as tape archives add them.

    Args:
        data: one or more gzip members, or a zlib stream.
        wbits: `GZIP` or `ZLIB_OR_GZIP`.
        length: number of bytes that a header states; decompression stops as soon as there are more. None takes all.

    Raises:
        Damaged: the data are cut off, their checksum differs, or they have another length.
    """
    parts: list[bytes] = []
    have = 0
    while True:
        stream = zlib.decompressobj(wbits)
        try:
            parts.append(stream.decompress(data, 0 if length is None else min(length - have + 1, sys.maxsize)))
            parts.append(stream.decompress(stream.unconsumed_tail, 1))  # reads the checksum where only it is left
        except zlib.error as error:
            raise Damaged(f"the compressed data are damaged ({error}): copy the file again") from None
        have += len(parts[-2]) + len(parts[-1])
        if length is not None and have > length:
            raise Damaged(f"the compressed data hold more than the {length:,} bytes that the header states")
        if not stream.eof:
            raise Damaged("the compressed data are cut off: copy the file again")
        data = stream.unused_data.lstrip(b"\0")
        if not data:
            break
    if length is not None and have != length:
        raise Damaged(f"the compressed data hold {have:,} bytes, not the {length:,} that the header states")
    return parts[0] if len(parts[1]) == 0 and len(parts) == 2 else b"".join(parts)


def check_length(have: int, shape: Sequence[int], bytes_a_voxel: int) -> None:
    """Raise `Damaged` unless the voxels of a file take as many bytes as its header states."""
    length = prod(shape) * bytes_a_voxel
    if have != length:
        size = "×".join(map(str, shape))
        what = "is cut off" if have < length else "is longer than its header states"
        raise Damaged(f"it {what}: {size} voxels take {length:,} bytes, and it has {have:,}: copy the file again")
