"""NRRD: .nrrd, and .nhdr with its voxels in a file beside it. Compressed voxels have a checksum."""

from __future__ import annotations

from math import prod
from pathlib import Path

from nnunet_glims.image_formats.content import GZIP, Damaged, check_length, inflate
from nnunet_glims.image_formats.headers import LONGEST_HEADER, data_file, numbers, sizes

_NAMES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
}
_UNSIGNED = {
    2: ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    8: ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double"),
}
BYTES = {name: size for names in (_NAMES, _UNSIGNED) for size, of in names.items() for name in of}
"""Type of a number -> its size in bytes."""
_NUMBERS = (
    "space origin",
    "space directions",
    "spacings",
    "axis mins",
    "axis maxs",
    "thicknesses",
    "measurement frame",
)
_KNOWN = {
    *_NUMBERS,
    *("type", "dimension", "sizes", "encoding", "endian", "space", "space dimension", "space units", "kinds"),
    *(
        "data file",
        "datafile",
        "line skip",
        "lineskip",
        "byte skip",
        "byteskip",
        "content",
        "number",
        "units",
        "labels",
    ),
    *("min", "max", "old min", "oldmin", "old max", "oldmax", "block size", "blocksize", "sample units", "sampleunits"),
    *("axismins", "axismaxs", "centers", "centerings"),
}


def check(file: Path) -> None:
    """Raise `Damaged` unless header and voxels of a NRRD file are whole, and `OSError` where the file cannot be read."""
    content = file.read_bytes()
    if not content.startswith(b"NRRD000"):
        raise Damaged("this is no NRRD file")
    fields: dict[str, str] = {}
    start = content.find(b"\n") + 1
    while True:
        end = content.find(b"\n", start, LONGEST_HEADER)
        if end < 0 and not {"data file", "datafile"} & fields.keys():
            raise Damaged("the header has no end")
        line = content[start : end if end >= 0 else len(content)].decode("latin-1").strip()
        start = end + 1
        if not line:
            break
        if line.startswith("#"):
            continue
        key, colon, value = line.partition(":")
        if value.startswith("="):  # a key and a value of the user's
            continue
        if not colon or key not in _KNOWN:
            raise Damaged(f"the header has the unknown field {key[:60]!r}")
        fields[key] = value.strip()
        if end < 0:
            break
    shape = sizes(fields, "sizes", "dimension")
    for key in fields.keys() & set(_NUMBERS):
        numbers(fields, key)
    if fields.get("type") not in BYTES:
        raise Damaged(f"the header has type {fields.get('type', '')[:60]!r}, which is unknown")
    if any(fields.get(key, "0") != "0" for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise Damaged("its voxels begin after other bytes (line skip, byte skip): convert it to .nii.gz")
    size = BYTES[fields["type"]]
    name = fields.get("data file", fields.get("datafile"))
    data = content[start:] if name is None else data_file(file, name)
    encoding = fields.get("encoding")
    if encoding in ("gz", "gzip"):
        inflate(data, GZIP, prod(shape) * size)
    elif encoding == "raw":
        check_length(len(data), shape, size)
    elif encoding in ("txt", "text", "ascii"):
        check_length(len(data.split()), shape, 1)
    else:
        raise Damaged(f"the header has encoding {encoding!r}: convert it to .nii.gz")
