"""Export nnU-Net's folder of a trained model to a folder that runs without torch and nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnunet_glims import __version__
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.export import conversion, parity
from nnunet_glims.export.description import settings_from_plans
from nnunet_glims.export.exported import MODEL_JSON, ExportedModel, FoldFile, Format, Precision, checksum
from nnunet_glims.export.runner import load_networks
from nnunet_glims.files import check_new, new_folder
from nnunet_glims.geometry import times
from nnunet_glims.images import is_finite, not_finite
from nnunet_glims.kernels.ops import plain_operators
from nnunet_glims.nnunet.checkpoints import FINAL, load_checkpoint, load_weights, trained_folds
from nnunet_glims.nnunet.models import ModelFolder

ENDINGS = {"onnx": ".onnx", "torchscript": ".pt"}
"""Format -> ending of the network files."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export and how.

    Attributes:
        folds: names such as ("0", "1") or ("all",); empty for every numbered fold that has the checkpoint.
        format: a key of `ENDINGS`.
        precision: how weights are stored, a key of `parity.TOLERANCES`.
        opset: ONNX operator set, one of `conversion.OPSETS`.
        checkpoint: name of the checkpoint's file in each fold's folder.
        trust: whether to load checkpoints that hold more than numbers, and to call whatever the plans name.

    Raises:
        UsageError: on construction, where a setting is unknown or settings contradict each other.
    """

    folds: tuple[str, ...] = ()
    format: Format = "onnx"
    precision: Precision = "fp32"
    opset: int = conversion.OPSETS[0]
    checkpoint: str = FINAL
    trust: bool = False

    def __post_init__(self) -> None:
        for option, choices in (("format", tuple(ENDINGS)), ("precision", tuple(parity.TOLERANCES))):
            if getattr(self, option) not in choices:
                raise UsageError(f"--{option} {getattr(self, option)} is unknown: choose {', '.join(choices)}")
        if self.format == "torchscript" and self.precision != "fp32":
            raise UsageError(f"--precision {self.precision}: TorchScript is exported in fp32 alone; use --format onnx")
        if self.opset not in conversion.OPSETS:
            raise UsageError(f"--opset {self.opset}: choose {', '.join(map(str, conversion.OPSETS))}")


def export(
    source: Path,
    out: Path,
    request: ExportRequest = ExportRequest(),
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> ExportedModel:
    """Export a trained model. Where this fails, nothing is written.

    Args:
        source: nnU-Net's model folder.
        out: folder to write. It appears when the export is complete.
        request: what to export and how.
        overwrite: whether an export in `out` is replaced.
        log: receives a line of text for each fold, and warnings.

    Returns:
        The content of the model.json that was written.

    Raises:
        UsageError: `source` is no model folder, a fold or checkpoint is missing, the runner cannot follow the plans, or
            `out` exists, or the network cannot compute the plans' patch.
        ProcessingError: a checkpoint or the image to compare on is damaged or not finite.
        parity.ParityError: an exported network differs from PyTorch.
    """
    model = ModelFolder(source, request.trust)
    _check_tools(request)
    check_new(out, overwrite, MODEL_JSON, "export")
    folds = trained_folds(model, request.folds, request.checkpoint)
    checkpoints = {fold: source / f"fold_{fold}" / request.checkpoint for fold in folds}
    first = load_checkpoint(checkpoints[folds[0]], request.trust)
    exported = ExportedModel(
        format=request.format,
        precision=request.precision,
        opset=request.opset if request.format == "onnx" else None,
        versions={"nnunet_glims": __version__, "nnunetv2": version("nnunetv2"), "torch": torch.__version__},
        folds=[],
        **settings_from_plans(model, first),
    )
    network = model.network()[0].eval()
    if hasattr(network, "precision"):  # networks of this package may enable autocast themselves
        network.precision = None
    patches = parity.comparison_patches(model, exported)
    if len(patches) == 1:
        log(
            "no image of the data set was found (nnUNet_preprocessed, nnUNet_raw): parity is checked on random numbers only"
        )

    with new_folder(out) as unfinished:
        files = []
        for fold in folds:
            checkpoint = first if fold == folds[0] else load_checkpoint(checkpoints[fold], request.trust)
            load_weights(network, checkpoint, checkpoints[fold])
            expected = {name: _logits(network, patch, checkpoints[fold]) for name, patch in patches.items()}
            files.append(_export_fold(network, fold, unfinished, exported, patches, expected, log))
        exported = exported.model_copy(update={"folds": files})
        exported.write(unfinished)
    return exported


def _check_tools(request: ExportRequest) -> None:
    if request.format == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UsageError(f"{error.name} is not installed: pip install 'nnunet-glims[onnx]'") from None


def _export_fold(
    network: nn.Module,
    fold: str,
    folder: Path,
    exported: ExportedModel,
    patches: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    log: Callable[[str], None],
) -> FoldFile:
    path = folder / f"fold_{fold}{ENDINGS[exported.format]}"
    example = torch.from_numpy(patches["random"])[None]
    if exported.format == "onnx":
        assert exported.opset is not None
        conversion.write_onnx(network, example, path, exported.precision, exported.opset)
    else:
        conversion.write_torchscript(network, example, path)
    file = FoldFile(fold=fold, file=path.name, sha256=checksum(path), parity=[])
    compute = _load_written(folder, exported.model_copy(update={"folds": [file]}))
    regions = exported.regions_class_order is not None
    figures = [
        parity.difference(name, expected[name], compute(patch[None])[0], regions) for name, patch in patches.items()
    ]

    def rounding_error(name: str) -> float:
        exact = _logits_in_float64(network, patches[name])
        return 0.0 if exact is None else parity.difference(name, exact, expected[name], regions)["relative_error"]

    parity.check(fold, exported.precision, figures, rounding_error)
    last = figures[-1]
    log(
        f"fold {fold}: {path.stat().st_size / 1e6:.1f} MB; differs from PyTorch by {last['relative_error']:.1g} of the logits' "
        f"standard deviation, same label in {last['agreement']:.3%} of voxels ({last['patch']})"
    )
    return file.model_copy(update={"parity": figures})


def _logits(network: nn.Module, patch: np.ndarray, checkpoint: Path) -> np.ndarray:
    """Return the logits (outputs, z, y, x) that PyTorch computes of a patch (channels, z, y, x), before export takes minutes.

    Raises:
        UsageError: the network cannot compute a patch of this size.
        ProcessingError: the logits are not finite.
    """
    try:
        with plain_operators(), torch.inference_mode():
            logits = network(torch.from_numpy(patch)[None])[0].numpy()
    except (
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # a TypeError where an argument in the plans has another type
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{checkpoint}: the network cannot compute the plans' patch of {times(patch.shape[1:])} voxels ({reason}): "
            "plan a larger patch and train with it"
        ) from None
    if not is_finite(logits):
        raise ProcessingError(f"{checkpoint}: the network computes {not_finite(logits)}: its weights are damaged")
    return logits


def _logits_in_float64(network: nn.Module, patch: np.ndarray) -> np.ndarray | None:
    """Return the logits that PyTorch computes in float64; None where the network works in float32 alone."""
    try:
        with plain_operators(), torch.inference_mode():
            return network.double()(torch.from_numpy(patch).double()[None])[0].numpy()
    except RuntimeError:
        return None
    finally:
        network.float()


def _load_written(folder: Path, exported: ExportedModel) -> Callable[[np.ndarray], np.ndarray]:
    """Load the written file as its users do, and return it as a function from a patch to logits."""
    if exported.format == "onnx":
        return load_networks(folder, exported, device="cpu")[0]
    script = torch.jit.load(str(folder / exported.folds[0].file))

    def compute(patch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return script(torch.from_numpy(patch)).numpy()

    return compute
