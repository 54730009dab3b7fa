"""NIfTI 1 in one file (.nii, .nii.gz), decoded here because SimpleITK also reads NaN and infinity as 0."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_glims.image_formats.content import GZIP, Damaged, check_length, inflate

TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
"""NIfTI's code of a data type with one number a voxel -> NumPy's name without the byte order."""
OTHER_TYPES = {
    1: "bits",
    32: "complex numbers",
    128: "RGB colours",
    1536: "128-bit numbers",
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "RGBA colours",
}
_SHORTEST = 352
"""Bytes from the beginning of a file to its first voxel, at least."""
_SMALL = 2**20
"""Files with fewer bytes than this, decompressed, are read faster without SimpleITK."""


@dataclass(frozen=True)
class Header:
    """What the header of a NIfTI file says about its voxels.

    Attributes:
        shape: number of voxels along the file's axes, without axes of length 1 after the third.
        dtype: data type in the file, with its byte order.
        offset: byte at which the voxels begin.
        slope, intercept: a voxel's value is `slope * number + intercept`; 1 and 0 where the file has no scaling.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float

    @classmethod
    def parse(cls, head: bytes) -> Header:
        """Return the header at the beginning of a file; raise `Damaged` where it is no header of one NIfTI file."""
        if len(head) < _SHORTEST:
            raise Damaged(f"this is no NIfTI file, it has {len(head)} bytes only")
        order = next((order for order in "<>" if struct.unpack(f"{order}i", head[:4])[0] == 348), None)
        if head[4:8] == b"n+2\0":
            raise Damaged(
                "this is NIfTI 2, which SimpleITK does not read: save it as NIfTI 1, for example with nibabel"
            )
        if order is None or head[344:348] != b"n+1\0":
            raise Damaged("this is no NIfTI file")
        dim = struct.unpack_from(f"{order}8h", head, 40)
        (datatype,) = struct.unpack_from(f"{order}h", head, 70)
        offset, slope, intercept = struct.unpack_from(f"{order}3f", head, 108)
        axes = dim[0]
        if not 1 <= axes <= 7 or min(dim[1 : 1 + axes]) < 1:
            raise Damaged(f"the header states {axes} axes with {list(dim[1:])} voxels")
        if not isfinite(offset) or offset != int(offset) or offset < _SHORTEST:
            raise Damaged(f"the header states that voxels begin at byte {offset:g}")
        if datatype not in TYPES:
            kind = OTHER_TYPES.get(datatype)
            raise Damaged(f"its voxels are {kind}, not one number each" if kind else f"data type {datatype} is unknown")
        shape = tuple(int(length) for length in dim[1 : 1 + axes])
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if not isfinite(slope) or not isfinite(intercept) or slope == 0:
            slope, intercept = 1.0, 0.0
        return cls(shape, np.dtype(f"{order}{TYPES[datatype]}"), int(offset), slope, intercept)

    @property
    def length(self) -> int:
        """Number of bytes of the file, decompressed."""
        return self.offset + prod(self.shape) * self.dtype.itemsize


def read(file: Path) -> np.ndarray:
    """Return the voxels of a NIfTI file along the file's own axes, (X, Y, Z) for a 3D image, with the file's scaling.

    Axes of length 1 after the third are left out. Scaled numbers are float32, or float64 where the file's are, as in SimpleITK.

    Raises:
        Damaged: this is no NIfTI file, or it is cut off, has another checksum or more bytes than its header states.
        OSError: the file cannot be read.
    """
    if file.name.lower().endswith(".gz"):
        compressed = file.read_bytes()
        if compressed[:2] != b"\x1f\x8b":
            raise Damaged("this is no gzip file, although its name ends in .gz")
        header = Header.parse(_head(compressed, _SHORTEST))
        found = _decoded_by_simpleitk(file, header, compressed)
        if found is not None:
            return found
        voxels = np.frombuffer(inflate(compressed, GZIP, header.length), header.dtype, offset=header.offset)
    else:
        with file.open("rb") as opened:
            header = Header.parse(opened.read(_SHORTEST))
        check_length(file.stat().st_size - header.offset, header.shape, header.dtype.itemsize)
        voxels = np.fromfile(file, header.dtype, offset=header.offset)
    voxels = voxels.reshape(header.shape, order="F")
    if (header.slope, header.intercept) != (1.0, 0.0):
        kind = header.dtype.newbyteorder("=") if header.dtype.kind == "f" else np.float32
        return (voxels.astype(np.float64) * header.slope + header.intercept).astype(kind)
    return voxels.astype(header.dtype.newbyteorder("="), copy=False)


def _decoded_by_simpleitk(file: Path, header: Header, compressed: bytes) -> np.ndarray | None:
    """Return the voxels as SimpleITK reads them, where they have the checksum of the file; else None.

    SimpleITK decompresses large files three times as fast as Python, but does not look at the checksum.
    """
    if header.length < _SMALL or (header.slope, header.intercept) != (1.0, 0.0) or not header.dtype.isnative:
        return None  # it takes longer, or changes the numbers
    if struct.unpack("<I", compressed[-4:])[0] != header.length % 2**32:
        return None
    try:
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="NiftiImageIO"))
    except RuntimeError:
        return None
    checksum = zlib.crc32(voxels.data, zlib.crc32(_head(compressed, header.offset)))
    if checksum != struct.unpack("<I", compressed[-8:-4])[0]:
        return None
    return voxels.T.reshape(header.shape, order="F")


def _head(compressed: bytes, length: int) -> bytes:
    """Return the first bytes of gzip-compressed data."""
    try:
        return zlib.decompressobj(GZIP).decompress(compressed, length)
    except zlib.error as error:
        raise Damaged(f"the compressed data are damaged ({error})") from None
