"""Load nnU-Net's checkpoints without running code that they may contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.nnunet.models import ModelFolder

FINAL = "checkpoint_final.pth"


def not_finite(weights: Mapping[str, Any]) -> str:
    """Return which of a network's weights are NaN or infinite, as text such as "2 of 40 tensors, the first is conv.weight".

    The text is empty if all are finite. Values that are not tensors of floating-point numbers are not looked at.
    """
    floats = {name: value for name, value in weights.items() if isinstance(value, Tensor) and value.is_floating_point()}
    bad = [name for name, value in floats.items() if not torch.isfinite(value).all()]
    return f"NaN or infinity in {len(bad)} of {len(floats)} tensors, the first is {bad[0]}" if bad else ""


def check_loaded(network: nn.Module, *_: Any) -> None:
    """Raise `ProcessingError` if the weights that a network has loaded are not finite; a hook of `load_state_dict`."""
    if bad := not_finite(network.state_dict()):
        raise ProcessingError(
            f"the loaded weights are not finite ({bad}): the training that wrote them has diverged. Use another checkpoint "
            "of this fold (nnUNetv2_predict: -chk checkpoint_best.pth), or train it again"
        )


def _harmless() -> list[Any]:
    """Return the types of NumPy's numbers and the functions that unpickle them, which nnU-Net's stored losses need.

    They include their names in older versions of NumPy.
    """
    make = np.float64(0).__reduce__()[0]
    kinds = {
        type(np.dtype(name)) for name in ("bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    }
    return [np.dtype, *kinds, *((make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


def load_checkpoint(path: Path, trust: bool = False) -> dict[str, Any]:
    """Load a checkpoint to the CPU, and return its content.

    Args:
        path: the checkpoint's file.
        trust: whether to allow any pickled object, which may run code while it is loaded.

    Raises:
        UsageError: there is no such file, or it holds more than tensors and plain data while `trust` is not set.
        ProcessingError: the file is damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such checkpoint: train this fold, or choose others with --folds")
    try:
        with torch.serialization.safe_globals(_harmless()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        found = _foreign(path)
        if not found:
            raise ProcessingError(f"{path}: this checkpoint is damaged ({str(error).splitlines()[0]})") from None
        raise UsageError(
            f"{path}: this checkpoint holds more than numbers ({', '.join(found)}). Loading such objects can run any code "
            "that the file's author put there. Only if you know where it comes from, add --trust"
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ProcessingError(f"{path}: this checkpoint is damaged ({str(error).splitlines()[0]})") from None
    missing = [key for key in ("network_weights", "trainer_name") if key not in checkpoint]
    if missing:
        raise UsageError(f"{path}: this is no checkpoint of nnU-Net: it has no {' and no '.join(missing)}")
    return checkpoint


def trained_folds(model: ModelFolder, wanted: Sequence[str] = (), checkpoint: str = FINAL) -> Sequence[str]:
    """Return the names of the folds to use: the wanted ones, or every numbered fold that has the checkpoint.

    Args:
        model: the model folder.
        wanted: names of folds, such as "0" or "all"; empty for every numbered fold, or "all" if there is none.
        checkpoint: file name of the checkpoint in a fold's folder.

    Raises:
        UsageError: a fold has no such checkpoint.
    """
    there = sorted(path.parent.name.removeprefix("fold_") for path in model.path.glob(f"fold_*/{checkpoint}"))
    if not there:
        raise UsageError(f"{model.path}: no fold has a {checkpoint}: train one first")
    missing = [fold for fold in wanted if fold not in there]
    if missing:
        raise UsageError(f"{model.path}: fold {missing[0]} has no {checkpoint}; there are {', '.join(there)}")
    return wanted or [fold for fold in there if fold.isdigit()] or there


def load_weights(network: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into a network.

    Raises:
        UsageError: the weights belong to another network.
        ProcessingError: weights are NaN or infinite.
    """
    if bad := not_finite(checkpoint["network_weights"]):
        others = sorted(other.name for other in path.parent.glob("checkpoint_*.pth") if other != path)
        raise ProcessingError(
            f"{path}: the weights are not finite ({bad}): the training that wrote them has diverged. Train this fold again"
            + (f", or use another checkpoint ({', '.join(others)})" if others else "")
        )
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{path}: these weights are not of the network the plans describe: {reason}") from None


def _foreign(path: Path) -> list[str]:
    """Return the names of the objects in a file that are neither tensors nor plain data; empty if it cannot be read."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged pickle may raise anything
        return []
