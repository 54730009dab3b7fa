"""The folder an export is: model.json, which says how images become input and output becomes labels, and a file a fold."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json, write_json

MODEL_JSON = "model.json"
VERSION = 1
"""Of the layout of model.json."""


@dataclass(frozen=True)
class Normalization:
    """How nnU-Net normalises a channel: its scheme's name, whether over non-zero voxels only, intensities of the data set."""

    scheme: str
    use_mask: bool
    mean: float | None = None
    std: float | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None


@dataclass(frozen=True)
class Resampling:
    """Spline order in and between slices; whether slices are resampled apart: None lets the spacing decide."""

    order: int
    force_separate_z: bool | None
    anisotropy_threshold: float


@dataclass(frozen=True)
class SlidingWindow:
    """Step as a part of the patch, the Gaussian that weights a patch's voxels, axes along which to mirror."""

    step: float
    gaussian_sigma_scale: float
    gaussian_value_scaling: float
    mirror_axes: tuple[int, ...]


@dataclass(frozen=True)
class FoldFile:
    """The network of one fold and by how much it differs from PyTorch (see `parity`)."""

    fold: str
    file: str
    sha256: str
    parity: list[dict[str, Any]]


@dataclass(frozen=True)
class ExportedModel:
    """The content of model.json. Axes and spacing (mm) are in nnU-Net's order: z, y, x, transposed as the plans say.

    Attributes:
        labels: name -> label, or the labels of a region, as in dataset.json.
        regions_class_order: the label each region's voxels get, in the order of the network's output; None for plain
            labels, of which the highest output wins.
    """

    format: str
    precision: str
    opset: int | None
    dataset: str
    trainer: str
    plans: str
    configuration: str
    licence: str
    versions: dict[str, str]
    channels: list[str]
    file_ending: str
    labels: dict[str, Any]
    regions_class_order: list[int] | None
    outputs: int
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    transpose_forward: list[int]
    transpose_backward: list[int]
    normalization: list[Normalization]
    resampling_image: Resampling
    resampling_logits: Resampling
    sliding_window: SlidingWindow
    folds: list[FoldFile]

    def write(self, folder: Path) -> None:
        """Write model.json."""
        write_json(folder / MODEL_JSON, {"version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> ExportedModel:
        """From an export's folder; raises `UsageError` where it is none or its files are not the exported ones."""
        path = folder / MODEL_JSON
        if not path.is_file():
            raise UsageError(f"{folder}: there is no {MODEL_JSON}: give a folder that nnunet-glims export wrote")
        data = read_json(path)
        if not isinstance(data, dict) or data.get("version") != VERSION:
            found = data.get("version") if isinstance(data, dict) else None
            raise UsageError(f"{path}: version {found} is not {VERSION}, the one known here: export the model again")
        missing = [field.name for field in fields(cls) if field.name not in data]
        if missing:
            raise UsageError(f"{path}: the keys {', '.join(missing)} are missing: export the model again")
        try:
            model = cls(**_typed({key: value for key, value in data.items() if key != "version"}))
        except TypeError as error:
            raise UsageError(f"{path}: {error}: export the model again") from None
        for fold in model.folds:
            file = folder / fold.file
            if not file.is_file():
                raise UsageError(f"{file}: this file of the export is missing: copy the whole folder again")
            if checksum(file) != fold.sha256:
                raise UsageError(
                    f"{file}: this is not the file that was exported (SHA-256 differs): copy the folder again"
                )
        return model


def _typed(data: dict[str, Any]) -> dict[str, Any]:
    window = data["sliding_window"]
    return data | {
        "patch_size": tuple(data["patch_size"]),
        "spacing": tuple(data["spacing"]),
        "normalization": [Normalization(**channel) for channel in data["normalization"]],
        "resampling_image": Resampling(**data["resampling_image"]),
        "resampling_logits": Resampling(**data["resampling_logits"]),
        "sliding_window": SlidingWindow(**window | {"mirror_axes": tuple(window["mirror_axes"])}),
        "folds": [FoldFile(**fold) for fold in data["folds"]],
    }


def checksum(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
