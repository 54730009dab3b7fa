"""Open the ONNX files of an export, after checking that they are what model.json says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_glims.errors import ProcessingError
from nnunet_glims.export.exported import MODEL_JSON, ExportedModel
from nnunet_glims.export.sliding_window import PatchPredictor

if TYPE_CHECKING:
    from onnxruntime import SessionOptions


def open_network(file: Path, model: ExportedModel, options: SessionOptions, providers: Sequence[str]) -> PatchPredictor:
    """Return the network of an ONNX file as a function from a patch (1, channels, z, y, x) to logits (1, outputs, z, y, x).

    Args:
        file: the file.
        model: content of the export's model.json.
        options, providers: of onnxruntime.

    Raises:
        ProcessingError: the file is damaged, or its input or output is not what model.json says. The function raises it where
            the logits have another shape or are not finite.
    """
    from onnxruntime import InferenceSession

    try:
        session = InferenceSession(str(file), options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors have no class of their own
        reason = " ".join(str(error).split())[:300]
        raise ProcessingError(
            f"{file}: onnxruntime cannot open this file: it is damaged, or made for a newer onnxruntime ({reason}). Export the "
            "model again, or update onnxruntime"
        ) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    taken = [1, len(model.channels), *model.patch_size]
    given = [1, model.outputs, *model.patch_size]
    for what, found, shape in (("input", inputs, taken), ("output", outputs, given)):
        if len(found) != 1 or found[0].type != "tensor(float)" or not _fits(found[0].shape, shape):
            there = ", ".join(f"{one.type} {one.shape}" for one in found) or "nothing"
            raise ProcessingError(
                f"{file}: the network's {what} is {there}, and by {MODEL_JSON} it is one tensor(float) {shape}: "
                "export the model again"
            )
    name = inputs[0].name

    def compute(patch: np.ndarray) -> np.ndarray:
        try:
            logits = session.run(None, {name: patch})[0]
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:300]
            raise ProcessingError(f"{file}: onnxruntime cannot compute this network: {reason}") from None
        if list(logits.shape) != given or not np.isfinite(logits).all():
            what = f"of shape {list(logits.shape)} instead of {given}" if list(logits.shape) != given else "not finite"
            raise ProcessingError(f"{file}: the network's logits are {what}: export the model again")
        return logits

    return compute


def _fits(found: Sequence[int | str | None], wanted: Sequence[int]) -> bool:
    """Return whether a shape is the wanted one; sizes that the file leaves open fit."""
    return len(found) == len(wanted) and all(
        not isinstance(one, int) or one == size for one, size in zip(found, wanted, strict=True)
    )
