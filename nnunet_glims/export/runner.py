"""Prediction with an exported model: what nnU-Net does around its network, with neither torch nor nnU-Net.

Needs numpy, scipy, scikit-image, SimpleITK and onnxruntime. What is computed follows nnU-Net 2.8: transpose, crop to
non-zero, normalise, resample; windows with half overlap, weighted by a Gaussian, mirrored if wished, averaged over folds;
logits resampled back, labels, the crop put back, the source's geometry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_glims.errors import UsageError
from nnunet_glims.export.cases import find_input_cases
from nnunet_glims.export.exported import ExportedModel
from nnunet_glims.export.label_maps import label_map
from nnunet_glims.export.preprocessing import preprocess
from nnunet_glims.export.sliding_window import Network, predict_logits
from nnunet_glims.geometry import Geometry
from nnunet_glims.images import check_compressed, write_image

Array = np.ndarray


def read_image(files: Sequence[Path]) -> tuple[Array, Geometry]:
    """(channels, z, y, x) in float32 and where the voxels lie.

    Raises:
        ProcessingError: a compressed file is damaged or cut off.
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
    preprocessed = preprocess(image, geometry.spacing[::-1], model)
    return label_map(predict_logits(preprocessed.data, networks, model, mirror), preprocessed, model)


def predict(
    folder: Path,
    inputs: Sequence[Path],
    output: Path,
    mirror: bool = True,
    device: str = "auto",
    threads: int | None = None,
    keep_finished: bool = False,
    log: Callable[[str], None] = print,
) -> list[Path]:
    """Predict cases with an exported model and write their label maps.

    Args:
        folder: what `nnunet-glims export` wrote.
        inputs: a folder of cases, or the files of their channels.
        output: folder for CASE.nii.gz; made where it does not exist.
        mirror: average over mirrored versions too, as nnU-Net does by default.
        device, threads: see `load_networks`.
        keep_finished: leave out cases whose label map is there.
        log: told what is done.

    Returns:
        The files written.

    Raises:
        UsageError: a wrong model folder, damaged files, missing or superfluous channels.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: at least one is needed")
    model = ExportedModel.read(folder)
    cases = find_input_cases(inputs, model.file_ending, model.channels)
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
        log(f"{number} of {len(cases)}: {path} ({time.monotonic() - started:.1f} s)")
    return written
