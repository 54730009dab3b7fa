"""Prediction with an exported model: what nnU-Net does around its network, with neither torch nor nnU-Net.

Needs numpy, scipy, scikit-image, SimpleITK and onnxruntime. What is computed follows nnU-Net 2.8: transpose, crop to
non-zero, normalise, resample; windows with half overlap, weighted by a Gaussian, mirrored if wished, averaged over folds;
logits resampled back, labels, the crop put back, the source's geometry.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_fill_holes, gaussian_filter

from nnunet_glims.errors import UsageError
from nnunet_glims.export.exported import ExportedModel, Normalization
from nnunet_glims.export.resampling import coarse_axis, new_size, resample
from nnunet_glims.geometry import Geometry, bounding_box
from nnunet_glims.images import check_compressed, write_image

Array = np.ndarray
Network = Callable[[Array], Array]
"""(1, channels, z, y, x) of the patch's size -> logits (1, outputs, z, y, x), both float32."""


@dataclass(frozen=True)
class Case:
    """An image to predict: its name and a file a channel."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Prepared:
    """A preprocessed image and what it takes to go back.

    Attributes:
        data: (channels, z, y, x), float32, normalised, at the model's spacing.
        crop: where the non-zero part lies in the transposed image.
        size: of the transposed image, voxels.
        spacing: of the transposed image, mm.
    """

    data: Array
    crop: tuple[slice, ...]
    size: tuple[int, ...]
    spacing: tuple[float, ...]


# ---- cases and files


def find_cases(inputs: Sequence[Path], ending: str, channels: Sequence[str]) -> list[Case]:
    """The cases in a folder of CASE_0000.nii.gz, …, or those whose channels are given as files.

    Args:
        inputs: a folder, the files of one case in the channels' order, or files of several cases by their names.
        ending: of the files' names.
        channels: their names.

    Raises:
        UsageError: no images, a channel too many or too few, files that do not exist.
    """
    count = len(channels)
    missing = [path for path in inputs if not path.exists()]
    if missing:
        raise UsageError(f"{missing[0]}: there is no such file or folder")
    if len(inputs) == 1 and inputs[0].is_dir():
        return _cases_among(sorted(inputs[0].iterdir()), inputs[0], ending, channels)
    if any(path.is_dir() for path in inputs):
        raise UsageError("give one folder of cases, or the files of one case's channels, not several folders")
    if len(inputs) > count:
        cases = _cases_among(inputs, inputs[0].parent, ending, channels)
        if sum(len(case.files) for case in cases) != len(inputs):
            raise UsageError(
                f"not each of the {len(inputs)} files is named CASE_0000{ending} of a case and channel of its own"
            )
        return cases
    if len(inputs) != count:
        raise UsageError(f"{len(inputs)} files were given: the model takes {count} channels a case, {_named(channels)}")
    name = inputs[0].name
    if not name.endswith(ending):
        raise UsageError(f"{inputs[0]}: the model was trained on {ending} files: convert the images")
    return [Case(re.sub(r"_\d{4}$", "", name.removesuffix(ending)), tuple(inputs))]


def _cases_among(paths: Sequence[Path], folder: Path, ending: str, channels: Sequence[str]) -> list[Case]:
    count = len(channels)
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    found: dict[str, dict[int, Path]] = {}
    for path in paths:
        match = pattern.fullmatch(path.name)
        if match and not path.name.startswith("."):
            found.setdefault(match[1], {})[int(match[2])] = path
    if not found:
        raise UsageError(f"{folder}: no images named CASE_0000{ending} are in there")
    for name, files in found.items():
        for channel in range(count):
            if channel not in files:
                expected = folder / f"{name}_{channel:04d}{ending}"
                raise UsageError(f"{expected}: case {name} lacks this channel; the model takes {_named(channels)}")
        if len(files) > count:
            raise UsageError(f"{files[max(files)]}: the model takes {count} channels a case, {_named(channels)}")
    return [Case(name, tuple(files[channel] for channel in range(count))) for name, files in found.items()]


def _named(channels: Sequence[str]) -> str:
    return ", ".join(f"{index:04d} = {name}" for index, name in enumerate(channels))


def read_image(files: Sequence[Path]) -> tuple[Array, Geometry]:
    """(channels, z, y, x) in float32 and where the voxels lie.

    Raises:
        ProcessingError: a file is damaged or cut off.
        UsageError: a file is no 3D image, or the channels do not fit together.
    """
    arrays, geometries = [], []
    for file in files:
        check_compressed(file)
        try:
            image = sitk.ReadImage(str(file))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UsageError(f"{file}: SimpleITK cannot read this image: {reason}") from None
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise UsageError(f"{file}: this is no 3D image with one value a voxel: give one file a channel")
        arrays.append(sitk.GetArrayFromImage(image).astype(np.float32))
        geometries.append(Geometry.of(image))
    for file, geometry in zip(files, geometries, strict=True):
        difference = geometry.difference(geometries[0])
        if difference:
            raise UsageError(f"{file}: {difference} like {files[0].name}: resample the channels to one grid")
    return np.stack(arrays), geometries[0]


# ---- from an image to the network's input


def prepare(image: Array, spacing: Sequence[float], model: ExportedModel) -> Prepared:
    """What nnU-Net's DefaultPreprocessor does to an image.

    Args:
        image: (channels, z, y, x).
        spacing: along z, y, x, in mm.
    """
    image = image.transpose([0, *(1 + axis for axis in model.transpose_forward)]).astype(np.float32)
    spacing = tuple(float(spacing[axis]) for axis in model.transpose_forward)
    size = image.shape[1:]
    inside = binary_fill_holes((image != 0).any(axis=0))
    crop = bounding_box(inside) or tuple(slice(0, length) for length in size)
    image, inside = image[_every_channel(crop)], inside[crop]
    new = new_size(image.shape[1:], spacing, model.spacing)
    if min(new) < 1:
        raise UsageError(f"the image has {new} voxels at the model's spacing of {model.spacing} mm: it is too small")
    axis = coarse_axis(model.resampling_image, spacing, model.spacing)
    data = np.empty((len(image), *new), np.float32)
    for index, settings in enumerate(model.normalization):
        data[index] = resample(normalize(image[index], inside, settings), new, model.resampling_image.order, axis)
    return Prepared(data, crop, size, spacing)


def _every_channel(part: Sequence[slice]) -> tuple[slice, ...]:
    """The index of a part of (channels, z, y, x) from that of (z, y, x)."""
    return (slice(None), *part)


def normalize(channel: Array, inside: Array, settings: Normalization) -> Array:
    """One channel, normalised with one of nnU-Net's schemes, the names of which are the keys of `SCHEMES`."""
    return SCHEMES[settings.scheme](channel.astype(np.float32), inside, settings)


def _z_score(channel: Array, inside: Array, settings: Normalization) -> Array:
    part = inside if settings.use_mask else np.ones_like(inside)
    if not part.any():
        return channel
    values = channel[part]
    channel[part] = (values - values.mean()) / max(values.std(), 1e-8)
    return channel


def _ct(channel: Array, _: Array, settings: Normalization) -> Array:
    return (np.clip(channel, settings.percentile_00_5, settings.percentile_99_5) - settings.mean) / max(
        settings.std or 0, 1e-8
    )


def _rescale_to_01(channel: Array, *_) -> Array:
    channel = channel - channel.min()
    return channel / max(channel.max(), 1e-8)


SCHEMES: dict[str, Callable[[Array, Array, Normalization], Array]] = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "RescaleTo01Normalization": _rescale_to_01,
    "RGBTo01Normalization": lambda channel, *_: channel / 255,
    "NoNormalization": lambda channel, *_: channel,
}


# ---- the sliding window


def gaussian(patch_size: Sequence[int], sigma_scale: float, value_scaling: float) -> Array:
    """Weights of a patch's voxels, highest in the middle, never zero; rounded to half precision as nnU-Net's are."""
    weights = np.zeros(patch_size)
    weights[tuple(length // 2 for length in patch_size)] = 1
    weights = gaussian_filter(weights, [length * sigma_scale for length in patch_size], mode="constant")
    weights = (weights * (value_scaling / weights.max())).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32)


def windows(size: Sequence[int], patch_size: Sequence[int], step: float) -> Iterator[tuple[slice, ...]]:
    """Evenly spaced windows that cover a volume at least as large as the patch, at most `step` of a patch apart."""
    starts = []
    for length, patch in zip(size, patch_size, strict=True):
        count = int(np.ceil((length - patch) / (patch * step))) + 1
        stride = (length - patch) / max(count - 1, 1)
        starts.append([int(np.round(stride * index)) for index in range(count)])
    for corner in product(*starts):
        yield tuple(slice(start, start + patch) for start, patch in zip(corner, patch_size, strict=True))


def predict_logits(data: Array, networks: Sequence[Network], model: ExportedModel, mirror: bool) -> Array:
    """(channels, z, y, x) -> logits (outputs, z, y, x), the mean of the folds."""
    size, settings = data.shape[1:], model.sliding_window
    missing = [max(patch - length, 0) for length, patch in zip(size, model.patch_size, strict=True)]
    before = [count // 2 for count in missing]
    padded = np.pad(data, [(0, 0), *((low, count - low) for low, count in zip(before, missing, strict=True))])
    weights = gaussian(model.patch_size, settings.gaussian_sigma_scale, settings.gaussian_value_scaling)
    axes = settings.mirror_axes if mirror else ()
    flips = [chosen for count in range(len(axes) + 1) for chosen in combinations([axis + 2 for axis in axes], count)]

    total = np.zeros((model.outputs, *padded.shape[1:]), np.float32)
    total_weight = np.zeros(padded.shape[1:], np.float32)
    for window in windows(padded.shape[1:], model.patch_size, settings.step):
        patch = np.ascontiguousarray(padded[_every_channel(window)][None])
        predictions = [
            np.flip(network(np.ascontiguousarray(np.flip(patch, flip))), flip)[0]
            for network in networks
            for flip in flips
        ]
        total[_every_channel(window)] += weights * (sum(predictions) / len(predictions))
        total_weight[window] += weights
    total /= total_weight
    return total[_every_channel([slice(low, low + length) for low, length in zip(before, size, strict=True)])]


# ---- from logits to a label map


def to_labels(logits: Array, prepared: Prepared, model: ExportedModel) -> Array:
    """Label map (z, y, x) of the whole image from logits at the model's spacing.

    One output after the other is resampled, so that never all of them exist at the image's resolution.
    """
    size = tuple(part.stop - part.start for part in prepared.crop)
    axis = coarse_axis(model.resampling_logits, model.spacing, prepared.spacing)
    order = model.resampling_logits.order
    labels = np.zeros(size, np.uint16)
    if model.regions_class_order is not None:
        for region, label in zip(logits, model.regions_class_order, strict=True):
            labels[resample(region, size, order, axis) > 0] = label  # the sigmoid is above one half
    else:
        highest = resample(logits[0], size, order, axis)
        for label in range(1, len(logits)):
            candidate = resample(logits[label], size, order, axis)
            labels[candidate > highest] = label
            highest = np.maximum(highest, candidate)
    whole = np.zeros(prepared.size, np.uint8 if labels.max(initial=0) < 255 else np.uint16)
    whole[prepared.crop] = labels
    return whole.transpose(model.transpose_backward)


# ---- whole cases


def load_networks(
    folder: Path, model: ExportedModel, device: str = "auto", threads: int | None = None
) -> list[Network]:
    """One network a fold, run by onnxruntime.

    Args:
        folder: of the export.
        device: cpu, cuda, or auto for CUDA where onnxruntime has it.
        threads: of onnxruntime on the CPU; None for a core each.

    Raises:
        UsageError: no onnxruntime, no ONNX export, no such device.
    """
    if model.format != "onnx":
        raise UsageError(f"{folder}: this export is {model.format}: export with --format onnx to run it here")
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("onnxruntime is not installed: pip install onnxruntime, or onnxruntime-gpu") from None
    available = onnxruntime.get_available_providers()
    has_cuda = "CUDAExecutionProvider" in available
    if device == "cuda" and not has_cuda:
        raise UsageError(
            "--device cuda: this onnxruntime has no CUDA: pip install onnxruntime-gpu, or use --device cpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    if has_cuda and device != "cpu":
        providers.insert(0, "CUDAExecutionProvider")

    def network(file: Path) -> Network:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        name = session.get_inputs()[0].name
        return lambda patch: session.run(None, {name: patch})[0]

    return [network(folder / fold.file) for fold in model.folds]


def predict_case(
    image: Array, geometry: Geometry, networks: Sequence[Network], model: ExportedModel, mirror: bool
) -> Array:
    """(channels, z, y, x) -> label map (z, y, x)."""
    prepared = prepare(image, geometry.spacing[::-1], model)
    return to_labels(predict_logits(prepared.data, networks, model, mirror), prepared, model)


def predict(
    folder: Path,
    inputs: Sequence[Path],
    output: Path,
    mirror: bool = True,
    device: str = "auto",
    threads: int | None = None,
    keep_finished: bool = False,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Predict cases with an exported model and write their label maps.

    Args:
        folder: what `nnunet-glims export` wrote.
        inputs: a folder of cases, or the files of their channels.
        output: folder for CASE.nii.gz; made where it does not exist.
        mirror: average over mirrored versions too, as nnU-Net does by default.
        device, threads: see `load_networks`.
        keep_finished: leave out cases whose label map is there.
        say: told what is done.

    Returns:
        The files written.

    Raises:
        UsageError: a wrong model folder, damaged files, missing or superfluous channels.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: at least one is needed")
    model = ExportedModel.read(folder)
    cases = find_cases(inputs, model.file_ending, model.channels)
    networks = load_networks(folder, model, device, threads)
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for number, case in enumerate(cases, start=1):
        path = output / f"{case.name}{model.file_ending}"
        if keep_finished and path.exists():
            continue
        started = time.monotonic()
        image, geometry = read_image(case.files)
        write_image(predict_case(image, geometry, networks, model, mirror), geometry, path)
        written.append(path)
        say(f"{number} of {len(cases)}: {path} ({time.monotonic() - started:.1f} s)")
    return written
