"""The files of an export: model.json, which describes preprocessing, windows and labels, and a network per fold."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import read_json, write_json
from nnunet_glims.validation import validate

MODEL_JSON = "model.json"
VERSION: Literal[1] = 1
"""Version of the layout of model.json."""

NormalizationScheme = Literal[
    "ZScoreNormalization",
    "CTNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "NoNormalization",
]
"""Names of nnU-Net's normalisation schemes, all of which `preprocessing.SCHEMES` implements."""


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Normalization(_StrictModel):
    """How nnU-Net normalises one channel.

    Attributes:
        scheme: name of nnU-Net's normalisation scheme.
        use_mask: whether only non-zero voxels are normalised.
        mean, std, percentile_00_5, percentile_99_5: foreground intensities of the training set; CTNormalization alone
            needs them.
    """

    scheme: NormalizationScheme
    use_mask: bool
    mean: float | None = None
    std: float | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None


class Resampling(_StrictModel):
    """How nnU-Net resamples.

    Attributes:
        order: order of the spline within slices, or along all axes where slices are not resampled separately.
        force_separate_z: whether slices are resampled separately; None lets the spacing decide.
        anisotropy_threshold: ratio of the largest to the smallest spacing above which slices are resampled separately.
    """

    order: int
    force_separate_z: bool | None
    anisotropy_threshold: float


class SlidingWindow(_StrictModel):
    """How predictions of patches are combined.

    Attributes:
        step: distance of two windows as a fraction of the patch size.
        gaussian_sigma_scale: standard deviation of the Gaussian weights as a fraction of the patch size.
        gaussian_value_scaling: the highest weight.
        mirror_axes: axes (0: z, 1: y, 2: x) along which patches are mirrored.
    """

    step: float
    gaussian_sigma_scale: float
    gaussian_value_scaling: float
    mirror_axes: tuple[int, ...]


class FoldFile(_StrictModel):
    """The network file of one fold.

    Attributes:
        fold: name of the fold, such as "0" or "all".
        file: name of the file inside the export.
        sha256: the file's checksum, hexadecimal.
        parity: how far the network is from PyTorch on each patch, see `parity.difference`.
    """

    fold: str
    file: str
    sha256: str
    parity: list[dict[str, Any]]


class ExportedModel(_StrictModel):
    """The content of model.json. Axes and spacing (mm) are in nnU-Net's order: z, y, x, transposed as the plans say.

    Attributes:
        version: version of this layout.
        format: "onnx" or "torchscript".
        precision: what weights are stored as: "fp32", "fp16" or "int8".
        opset: ONNX operator set; None for TorchScript.
        dataset, trainer, plans, configuration: what nnU-Net calls the model.
        licence: of weights and network, in words.
        versions: package -> version that the export was written with.
        channels: names of the image's channels in their order.
        file_ending: ending of the images' names, such as ".nii.gz".
        labels: name -> label, or the labels of a region, as in dataset.json.
        regions_class_order: the label that the voxels of each region get, in the order of the network's outputs; None
            for a model of labels, where the highest output decides.
        outputs: number of the network's outputs.
        patch_size: voxels.
        spacing: mm.
        transpose_forward, transpose_backward: order of the axes that nnU-Net works in, and the order that undoes it.
        normalization: one entry per channel.
        resampling_image, resampling_logits: how images and logits are resampled.
        sliding_window: how predictions of patches are combined.
        folds: one file per fold.
    """

    version: Literal[1] = VERSION
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
        write_json(folder / MODEL_JSON, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> ExportedModel:
        """Read model.json and check that the network files are those that were exported.

        Raises:
            UsageError: the folder is no export, or one of another version; a network file is missing.
            ProcessingError: a network file was changed or damaged after the export.
        """
        path = folder / MODEL_JSON
        if not path.is_file():
            raise UsageError(f"{folder}: there is no {MODEL_JSON}: give a folder that nnunet-glims export wrote")
        data = read_json(path)
        found = data.get("version") if isinstance(data, dict) else None
        if found != VERSION:
            raise UsageError(f"{path}: version {found} is not {VERSION}, the one known here: export the model again")
        model = validate(cls, data, str(path))
        for fold in model.folds:
            file = folder / fold.file
            if not file.is_file():
                raise UsageError(f"{file}: this file of the export is missing: copy the whole folder again")
            if checksum(file) != fold.sha256:
                raise ProcessingError(
                    f"{file}: this is not the file that was exported (SHA-256 differs): copy the folder again"
                )
        return model


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
