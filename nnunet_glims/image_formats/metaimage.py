"""MetaImage: .mha, and .mhd with its voxels in a file beside it. Compressed voxels have a checksum."""

from __future__ import annotations

from math import prod
from pathlib import Path

from nnunet_glims.image_formats.content import ZLIB_OR_GZIP, Damaged, check_length, inflate
from nnunet_glims.image_formats.headers import LONGEST_HEADER, check_known, data_file, numbers, sizes

_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
BYTES = {f"MET_{sign}{name}": size for name, size in _BYTES.items() for sign in ("", "U")}
"""Type of a number -> its size in bytes."""
_SPACE = (
    "ElementSpacing",
    "ElementSize",
    "Offset",
    "Origin",
    "Position",
    "TransformMatrix",
    "Rotation",
    "Orientation",
    "CenterOfRotation",
)
_FLAGS = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")
_KNOWN = (
    *_SPACE,
    *_FLAGS,
    "ObjectType",
    "NDims",
    "DimSize",
    "HeaderSize",
    "CompressedDataSize",
    "AnatomicalOrientation",
    "ElementNumberOfChannels",
    "ElementType",
    "ElementDataFile",
)


def check(file: Path) -> None:
    """Raise `Damaged` unless header and voxels of a MetaImage are whole, and `OSError` where the file cannot be read."""
    content = file.read_bytes()
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = content.find(b"\n", start, LONGEST_HEADER)
        key, equals, value = content[start:end].decode("latin-1").partition("=")
        if end < 0 or not equals:
            raise Damaged("this is no MetaImage, or its header is damaged")
        fields[key.strip()] = value.strip()
        start = end + 1
    check_known(fields, _KNOWN)
    if fields.get("ObjectType", "Image") != "Image":
        raise Damaged(f"this is a MetaImage of {fields['ObjectType'][:60]!r}, not of an image")
    shape = sizes(fields, "DimSize", "NDims")
    for key in fields.keys() & set(_SPACE):
        count = len(numbers(fields, key))
        if count not in (len(shape), len(shape) ** 2):
            raise Damaged(f"the header has {count} numbers as {key}, and {len(shape)} axes")
    flags = {key: fields.get(key, "True" if key == "BinaryData" else "False") for key in _FLAGS}
    for key, value in flags.items():
        if value not in ("True", "False"):
            raise Damaged(f"the header has {key} {value[:60]!r}, which is neither True nor False")
    kind = fields.get("ElementType", "")
    if kind not in BYTES:
        raise Damaged(f"the header has ElementType {kind[:60]!r}, which is unknown")
    channels = [int(n) for n in numbers({"ElementNumberOfChannels": "1", **fields}, "ElementNumberOfChannels", int)]
    shape = [*shape, *channels]

    name = fields["ElementDataFile"]
    data = content[start:] if name.upper() == "LOCAL" else data_file(file, name)
    if skipped := fields.get("HeaderSize", "0") != "0":
        raise Damaged(f"its voxels begin after a header of {skipped} bytes: convert it to .nii.gz or .mha")
    if flags["CompressedData"] == "True":
        stated = numbers({"CompressedDataSize": str(len(data)), **fields}, "CompressedDataSize", int)
        if stated != [len(data)]:
            raise Damaged(f"the file is cut off or too long: its {len(data):,} bytes of voxels are not {stated}")
        inflate(data, ZLIB_OR_GZIP, prod(shape) * BYTES[kind])
    elif flags["BinaryData"] == "True":
        check_length(len(data), shape, BYTES[kind])
    else:
        check_length(len(data.split()), shape, 1)
