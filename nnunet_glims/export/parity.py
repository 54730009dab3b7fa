"""Does an exported network compute what PyTorch does?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_glims.export.exported import ExportedModel
from nnunet_glims.nnunet.folders import PREPROCESSED, RAW
from nnunet_glims.nnunet.models import ModelFolder

Array = np.ndarray


@dataclass(frozen=True)
class Tolerance:
    """What an export must keep to.

    Attributes:
        relative_error: highest difference of any logit, as a part of the logits' standard deviation.
        agreement: lowest part of voxels that get the same label (for regions: mean over regions).
    """

    relative_error: float = np.inf
    agreement: float = 0.0


TOLERANCES = {
    "fp32": Tolerance(relative_error=1e-3),
    "fp16": Tolerance(relative_error=2e-2, agreement=0.999),
    "int8": Tolerance(agreement=0.99),
}
"""By precision. For fp16 and int8 a real patch counts where there is one: on noise many logits are nearly equal."""


class ParityError(RuntimeError):
    """An exported network differs from PyTorch by more than its precision allows."""


def difference(patch: str, reference: Array, found: Array, regions: bool) -> dict[str, Any]:
    """Figures for model.json.

    Args:
        patch: "random" or where a real one comes from.
        reference, found: logits (outputs, z, y, x) of PyTorch and of the export.
        regions: outputs are regions, each on its own, not labels of which one wins.
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
    """None where both are empty."""
    total = int(first.sum() + second.sum())
    return 2 * int((first & second).sum()) / total if total else None


def check(fold: str, precision: str, figures: list[dict[str, Any]]) -> None:
    """Raise `ParityError` where an export differs too much."""
    allowed = TOLERANCES[precision]
    real = [entry for entry in figures if entry["patch"] != "random"]
    for entry in figures if precision == "fp32" or not real else real:
        error, agreement = entry["relative_error"], entry["agreement"]
        # written so that NaN fails too
        if not (error <= allowed.relative_error and agreement >= allowed.agreement):
            raise ParityError(
                f"fold {fold}: on a patch ({entry['patch']}) the {precision} export differs from PyTorch by {error:.2g} of "
                f"the logits' standard deviation and agrees in {agreement:.2%} of voxels; allowed are "
                f"{allowed.relative_error:g} and {allowed.agreement:.1%}. Nothing was written"
            )


def comparison_patches(model: ModelFolder, exported: ExportedModel) -> dict[str, Array]:
    """Patches to compare on, by where they come from: random numbers, and one of the data set's images if there is one."""
    shape = (len(exported.channels), *exported.patch_size)
    found = {"random": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for source in (_preprocessed_image, _raw_image):
        name, image = source(model, exported)
        if image is not None:
            found[name] = _middle(image, exported.patch_size)
            break
    return found


def _middle(image: Array, size: tuple[int, ...]) -> Array:
    """The middle of (channels, z, y, x), zero-padded at the end where it is smaller than `size`."""
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
    dataset = infer_dataset_class(str(folder))(str(folder))
    if not dataset.identifiers:
        return "", None
    case = sorted(dataset.identifiers)[0]
    return f"preprocessed {case}", np.asarray(dataset.load_case(case)[0][:], np.float32)


def _raw_image(model: ModelFolder, exported: ExportedModel) -> tuple[str, Array | None]:
    from nnunet_glims.export.preprocessing import preprocess
    from nnunet_glims.export.runner import read_image

    folder = RAW.find(exported.dataset, "imagesTr")
    if folder is None:
        return "", None
    first = min(folder.glob(f"*_0000{exported.file_ending}"), default=None)
    if first is None:
        return "", None
    case = first.name.removesuffix(f"_0000{exported.file_ending}")
    files = [folder / f"{case}_{channel:04d}{exported.file_ending}" for channel in range(len(exported.channels))]
    if not all(file.is_file() for file in files):
        return "", None
    image, geometry = read_image(files)
    return f"raw {case}", preprocess(image, geometry.spacing[::-1], exported).data
