"""The files of an export: model.json, which describes preprocessing, windows and labels, and a network per fold."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import write_json
from nnunet_glims.nnunet.plans.content import MOST_PATCH_VOXELS, Millimetres
from nnunet_glims.validation import read_model

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


def _plain_name(name: Any) -> Any:
    if isinstance(name, str) and (not name or name in (".", "..") or set(name) & set("/\\:\0")):
        raise ValueError(f"{name[:80]!r} is no name of a file in this folder: a path may lead out of it")
    return name


def _known_version(version: Any) -> Any:
    if version != VERSION or isinstance(version, bool):
        raise ValueError(
            f"this is version {version!r:.40}, and {VERSION} is the one known here: export the model again"
        )
    return version


Format = Literal["onnx", "torchscript"]
Precision = Literal["fp32", "fp16", "int8"]
FileName = Annotated[str, BeforeValidator(_plain_name)]
Version = Annotated[Literal[1], BeforeValidator(_known_version)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Axis = Annotated[int, Field(ge=0, le=2)]
Label = Annotated[int, Field(ge=0, le=65535)]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _AnyVersion(BaseModel):
    version: Version


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
    mean: Finite | None = None
    std: Annotated[Finite, Field(gt=0)] | None = None
    percentile_00_5: Finite | None = None
    percentile_99_5: Finite | None = None

    @model_validator(mode="after")
    def _check_ct(self) -> Normalization:
        needed = ("mean", "std", "percentile_00_5", "percentile_99_5")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.scheme == "CTNormalization" and missing:
            raise ValueError(f"CTNormalization needs {missing[0]}")
        low, high = self.percentile_00_5, self.percentile_99_5
        if low is not None and high is not None and low > high:
            raise ValueError(f"percentile_00_5 {low:g} is above percentile_99_5 {high:g}")
        return self


class Resampling(_StrictModel):
    """How nnU-Net resamples.

    Attributes:
        order: order of the spline within slices, or along all axes where slices are not resampled separately.
        force_separate_z: whether slices are resampled separately; None lets the spacing decide.
        anisotropy_threshold: ratio of the largest to the smallest spacing above which slices are resampled separately.
    """

    order: Annotated[int, Field(ge=0, le=5)]
    force_separate_z: bool | None
    anisotropy_threshold: Positive


class SlidingWindow(_StrictModel):
    """How predictions of patches are combined.

    Attributes:
        step: distance of two windows as a fraction of the patch size.
        gaussian_sigma_scale: standard deviation of the Gaussian weights as a fraction of the patch size.
        gaussian_value_scaling: the highest weight.
        mirror_axes: axes (0: z, 1: y, 2: x) along which patches are mirrored.
    """

    step: Annotated[float, Field(ge=0.05, le=1)]
    gaussian_sigma_scale: Annotated[float, Field(ge=0.001, le=100)]
    gaussian_value_scaling: Annotated[float, Field(ge=0.001, le=1e6)]
    mirror_axes: Annotated[tuple[Axis, ...], Field(max_length=3)]


class FoldFile(_StrictModel):
    """The network file of one fold.

    Attributes:
        fold: name of the fold, such as "0" or "all".
        file: name of the file inside the export.
        sha256: the file's checksum, hexadecimal.
        parity: how far the network is from PyTorch on each patch, see `parity.difference`.
    """

    fold: str
    file: FileName
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    parity: list[dict[str, Any]]


class ModelSettings(_StrictModel):
    """What a runner must know of a model. Axes and spacing (mm) are in nnU-Net's order: z, y, x, transposed as the plans say.

    Attributes:
        dataset, trainer, plans, configuration: what nnU-Net calls the model.
        licence: of weights and network, in words.
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
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str
    licence: str
    channels: Annotated[list[str], Field(min_length=1)]
    file_ending: Annotated[str, Field(pattern=r"^\.[A-Za-z0-9.]+$")]
    labels: dict[str, Label | list[Label]]
    regions_class_order: Annotated[list[Label], Field(min_length=1)] | None
    outputs: Annotated[int, Field(ge=1)]
    patch_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=3, max_length=3)]
    spacing: Annotated[tuple[Millimetres, ...], Field(min_length=3, max_length=3)]
    transpose_forward: Annotated[list[Axis], Field(min_length=3, max_length=3)]
    transpose_backward: Annotated[list[Axis], Field(min_length=3, max_length=3)]
    normalization: list[Normalization]
    resampling_image: Resampling
    resampling_logits: Resampling
    sliding_window: SlidingWindow

    @model_validator(mode="after")
    def _check_together(self) -> ModelSettings:
        if math.prod(self.patch_size) > MOST_PATCH_VOXELS:
            raise ValueError(f"patch_size: a patch may have at most {MOST_PATCH_VOXELS:,} voxels")
        if len(self.normalization) != len(self.channels):
            raise ValueError(f"normalization: {len(self.normalization)} entries for {len(self.channels)} channels")
        if [self.transpose_forward[axis] for axis in self.transpose_backward] != [0, 1, 2]:
            raise ValueError("transpose_backward: this does not undo transpose_forward")
        if len(set(self.sliding_window.mirror_axes)) < len(self.sliding_window.mirror_axes):
            raise ValueError("sliding_window.mirror_axes: an axis stands there twice")
        if self.regions_class_order is not None:
            wanted, why = len(self.regions_class_order), "one for each label in regions_class_order"
        else:
            of_names = [found for name, found in self.labels.items() if name != "ignore"]
            labels = {label for found in of_names for label in (found if isinstance(found, list) else [found])}
            if labels != set(range(len(labels))):
                raise ValueError("labels: they are numbered 0, 1, 2 and so on where there are no regions")
            wanted, why = len(labels), "one for each label"
        if self.outputs != wanted:
            raise ValueError(f"outputs: {self.outputs} are not {wanted}, {why}")
        return self


class ExportedModel(ModelSettings):
    """The content of model.json.

    Attributes:
        version: version of this layout.
        format: "onnx" or "torchscript".
        precision: what weights are stored as: "fp32", "fp16" or "int8".
        opset: ONNX operator set; None for TorchScript.
        versions: package -> version that the export was written with.
        folds: one file per fold.
    """

    version: Version = VERSION
    format: Format
    precision: Precision
    opset: int | None
    versions: dict[str, str]
    folds: list[FoldFile]

    def write(self, folder: Path) -> None:
        """Write model.json."""
        write_json(folder / MODEL_JSON, {"version": self.version, **self.model_dump(mode="json")})

    @classmethod
    def read(cls, folder: Path) -> ExportedModel:
        """Read model.json and check that the network files are those that were exported.

        Raises:
            UsageError: the folder is no export, or a network file is missing.
            ProcessingError: model.json is damaged or of another version; a network file lies outside of the folder, or was
                changed or damaged after the export.
        """
        path = folder / MODEL_JSON
        if not path.is_file():
            raise UsageError(f"{folder}: there is no {MODEL_JSON}: give a folder that nnunet-glims export wrote")
        read_model(_AnyVersion, path, ProcessingError)  # the form of other versions is not known here
        model = read_model(cls, path, ProcessingError)
        names = [fold.fold for fold in model.folds]
        if not names or len(set(names)) < len(names):
            raise ProcessingError(f"{path}: folds: {', '.join(names) or 'there is none'}: each fold stands there once")
        for fold in model.folds:
            file = folder / fold.file
            if not file.is_file():
                raise UsageError(f"{file}: this file of the export is missing: copy the whole folder again")
            if file.resolve().parent != folder.resolve():
                raise ProcessingError(
                    f"{file}: this link leads out of the folder, to {file.resolve()}: copy the file itself (cp -rL)"
                )
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
