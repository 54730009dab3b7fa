"""Check that an exported network computes what PyTorch computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.export.cases import read_case
from nnunet_glims.export.exported import ExportedModel
from nnunet_glims.export.preprocessing import preprocess
from nnunet_glims.images import is_finite, not_finite
from nnunet_glims.nnunet.folders import PREPROCESSED, RAW
from nnunet_glims.nnunet.models import ModelFolder

Array = np.ndarray


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from PyTorch.

    Attributes:
        relative_error: highest allowed difference of any logit, divided by the standard deviation of the logits.
        agreement: lowest allowed fraction of voxels that get the same label (for regions: mean over regions).
    """

    relative_error: float = np.inf
    agreement: float = 0.0


TOLERANCES = {
    "fp32": Tolerance(relative_error=1e-3),
    "fp16": Tolerance(relative_error=2e-2, agreement=0.999),
    "int8": Tolerance(agreement=0.99),
}
"""Precision -> tolerance. For fp16 and int8 only a patch of a real image counts where there is one: on random numbers
many logits are nearly equal, so that labels change easily."""


class ParityError(ProcessingError):
    """Raised where an exported network differs from PyTorch by more than its precision allows."""


def difference(patch: str, reference: Array, found: Array, regions: bool) -> dict[str, Any]:
    """Return how far two predictions of one patch differ: the entry of model.json.

    Args:
        patch: "random", or where the patch comes from.
        reference, found: logits (outputs, z, y, x) of PyTorch and of the export.
        regions: whether outputs are regions, each with a threshold, and not labels, of which the highest output
            decides.

    Returns:
        "patch"; "relative_error" and "agreement" as in `Tolerance`; "dice": one value per region or foreground label,
        None where neither prediction has a voxel of it.
    """
    if regions:
        first, second = reference > 0, found > 0
        overlaps = list(zip(first, second, strict=True))
    else:
        first, second = reference.argmax(axis=0), found.argmax(axis=0)
        overlaps = [(first == label, second == label) for label in range(1, len(reference))]
    error = np.abs(found.astype(np.float64) - reference).max() / max(float(reference.std()), 1e-12)
    return {
        "patch": patch,
        "relative_error": float(error),
        "agreement": float((first == second).mean()),
        "dice": [_dice(one, other) for one, other in overlaps],
    }


def _dice(first: Array, second: Array) -> float | None:
    """Return the Dice coefficient of two masks; None where both are empty."""
    total = int(first.sum() + second.sum())
    return 2 * int((first & second).sum()) / total if total else None


def check(fold: str, precision: str, figures: list[dict[str, Any]]) -> None:
    """Raise `ParityError` where an export differs from PyTorch by more than `TOLERANCES` allows.

    Args:
        fold: name of the fold, for the message.
        precision: a key of `TOLERANCES`.
        figures: what `difference` returned for each patch.
    """
    allowed = TOLERANCES[precision]
    real = [entry for entry in figures if entry["patch"] != "random"]
    for entry in figures if precision == "fp32" or not real else real:
        error, agreement = entry["relative_error"], entry["agreement"]
        # A comparison with NaN is False, so that an export that yields NaN fails.
        if not (error <= allowed.relative_error and agreement >= allowed.agreement):
            raise ParityError(
                f"fold {fold}: on a patch ({entry['patch']}) the {precision} export differs from PyTorch by {error:.2g} of "
                f"the logits' standard deviation and agrees in {agreement:.2%} of voxels; allowed are "
                f"{allowed.relative_error:g} and {allowed.agreement:.1%}. Nothing was written"
            )


def comparison_patches(model: ModelFolder, exported: ExportedModel) -> dict[str, Array]:
    """Return the patches (channels, z, y, x) to compare on, by where they come from.

    "random" are random numbers. Where nnUNet_preprocessed or nnUNet_raw has the data set, a patch of a real image
    follows.

    Raises:
        ProcessingError: this image is damaged, or has values that are not finite.
        UsageError: this image has other channels than the model.
    """
    shape = (len(exported.channels), *exported.patch_size)
    found = {"random": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for source in (_preprocessed_image, _raw_image):
        name, image = source(model, exported)
        if image is not None:
            where = f"{exported.dataset}, {name}"
            if image.ndim != 4 or len(image) != shape[0]:
                raise UsageError(
                    f"{where}: has shape {image.shape}, and the model takes 3D images with {shape[0]} channels: is this "
                    f"another data set under the same name?"
                )
            if not is_finite(image):
                raise ProcessingError(
                    f"{where}: {not_finite(image)}: the export cannot be compared with PyTorch on this image, and the model "
                    "may have been trained on it: mend the data set"
                )
            found[name] = _middle(image, exported.patch_size)
            break
    return found


def _middle(image: Array, size: tuple[int, ...]) -> Array:
    """Return the central part of an image (channels, z, y, x), zero-padded at the end where it is smaller than `size`."""
    for axis, length in enumerate(size, start=1):
        start = max(image.shape[axis] - length, 0) // 2
        image = image.take(range(start, min(start + length, image.shape[axis])), axis=axis)
    missing = [(0, length - have) for length, have in zip(size, image.shape[1:], strict=True)]
    return np.pad(image, [(0, 0), *missing])


def _preprocessed_image(model: ModelFolder, exported: ExportedModel) -> tuple[str, Array | None]:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plan = PlansManager(dict(model.plans)).get_configuration(exported.configuration)
    folder = PREPROCESSED.find(exported.dataset, plan.data_identifier)
    if folder is None or not any(folder.iterdir()):
        return "", None
    case = ""
    try:
        dataset = infer_dataset_class(str(folder))(str(folder))
        if not dataset.identifiers:
            return "", None
        case = sorted(dataset.identifiers)[0]
        return f"preprocessed {case}", np.asarray(dataset.load_case(case)[0][:], np.float32)
    except Exception as error:  # nnU-Net's formats raise many kinds for a damaged file
        raise ProcessingError(
            f"{folder / case}: this preprocessed case cannot be read ({error}): run nnUNetv2_preprocess again"
        ) from None


def _raw_image(model: ModelFolder, exported: ExportedModel) -> tuple[str, Array | None]:
    folder = RAW.find(exported.dataset, "imagesTr")
    if folder is None:
        return "", None
    first = min(folder.glob(f"[!.]*_0000{exported.file_ending}"), default=None)
    if first is None:
        return "", None
    case = first.name.removesuffix(f"_0000{exported.file_ending}")
    files = [folder / f"{case}_{channel:04d}{exported.file_ending}" for channel in range(len(exported.channels))]
    if not all(file.is_file() for file in files):
        return "", None
    image, geometry = read_case(files)
    return f"raw {case}", preprocess(image, geometry.spacing[::-1], exported).data
