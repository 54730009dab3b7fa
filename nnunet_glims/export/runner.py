"""Predict with an exported model, without torch and nnU-Net.

This needs numpy, scipy, scikit-image, SimpleITK, pydantic and onnxruntime. The steps are those of nnU-Net 2.8:
transpose, crop to non-zero voxels, normalise and resample the image; predict windows that overlap by half, weighted by
a Gaussian and optionally mirrored; average over folds; resample the logits, turn them into labels, and put these into
the grid of the image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nnunet_glims.errors import UsageError, UserError
from nnunet_glims.export.cases import find_input_cases, read_case
from nnunet_glims.export.exported import ExportedModel
from nnunet_glims.export.label_maps import label_map
from nnunet_glims.export.network_files import open_network
from nnunet_glims.export.preprocessing import preprocess
from nnunet_glims.export.sliding_window import PatchPredictor, predict_logits
from nnunet_glims.files import check_output_folder, make_folder
from nnunet_glims.geometry import Geometry
from nnunet_glims.images import read_image, write_image

Array = np.ndarray
MOST_THREADS = 1024


def load_networks(
    folder: Path, model: ExportedModel, device: str = "auto", threads: int | None = None
) -> list[PatchPredictor]:
    """Return one network per fold, which onnxruntime computes.

    Args:
        folder: folder of the export.
        model: content of its model.json.
        device: "cpu", "cuda", or "auto" for CUDA where onnxruntime has it.
        threads: number of threads of onnxruntime on the CPU; None lets onnxruntime choose.

    Raises:
        UsageError: onnxruntime is not installed or has no such device, or the export is not ONNX.
        ProcessingError: a file is damaged, or its network is not the one that model.json describes.
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
    return [open_network(folder / fold.file, model, options, providers) for fold in model.folds]


def predict_case(
    image: Array, geometry: Geometry, networks: Sequence[PatchPredictor], model: ExportedModel, mirror: bool
) -> Array:
    """Return the label map (z, y, x) of an image (channels, z, y, x)."""
    preprocessed = preprocess(image, geometry.spacing[::-1], model)
    return label_map(predict_logits(preprocessed.data, networks, model, mirror), preprocessed, model)


def _is_whole(path: Path) -> bool:
    """Return whether a label map is there and is whole; one that a full disk cut off is predicted again."""
    try:
        read_image(path)
    except UserError:
        return False
    return True


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
        folder: folder that `nnunet-glims export` wrote.
        inputs: a folder of cases, or channel files, see `cases.find_input_cases`.
        output: folder for CASE.nii.gz; it is made where it does not exist.
        mirror: whether to average over mirrored versions of each patch as well, as nnU-Net does by default.
        device, threads: see `load_networks`.
        keep_finished: whether cases whose label map is there already, and is whole, are skipped.
        log: receives a line of text for each case.

    Returns:
        The files that were written.

    Raises:
        UsageError: `folder` is no export, cases have missing or superfluous channels, or the label maps would lie among the
            images or in the export.
        ProcessingError: a file of the export or an image is damaged.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads {threads}: give a number from 1 to {MOST_THREADS}")
    check_output_folder(output, [folder, *(path for path in inputs if path.is_dir())])
    if any(output.resolve() == path.resolve().parent for path in inputs if path.is_file()):
        raise UsageError(f"{output}: the images are in this folder: choose another one for the label maps")
    model = ExportedModel.read(folder)
    cases = find_input_cases(inputs, model.file_ending, model.channels)
    networks = load_networks(folder, model, device, threads)
    make_folder(output)
    written = []
    for number, case in enumerate(cases, start=1):
        path = output / f"{case.name}{model.file_ending}"
        if keep_finished and _is_whole(path):
            continue
        started = time.monotonic()
        image, geometry = read_case(case.files)
        try:
            labels = predict_case(image, geometry, networks, model, mirror)
        except UserError as error:
            raise type(error)(f"case {case.name} ({case.files[0]}): {error}") from None
        write_image(labels, geometry, path)
        written.append(path)
        log(f"{number} of {len(cases)}: {path} ({time.monotonic() - started:.1f} s)")
    return written
