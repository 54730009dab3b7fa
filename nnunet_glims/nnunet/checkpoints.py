"""Load nnU-Net's checkpoints without running code that they may contain."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_glims.errors import ProcessingError, UsageError, cut
from nnunet_glims.nnunet.models import ModelFolder

FINAL = "checkpoint_final.pth"
_SIGNS_OF_CODE = ("GLOBAL", "Unsupported class", "unrecognized function", "Can only")
"""Parts of torch's messages about objects that it does not load with weights_only. Its other messages are about files that are
no pickles."""


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


def is_intact(path: Path) -> bool:
    """Return whether a file that `torch.save` wrote is complete and unchanged. torch does not look at the checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    # A damaged byte that says that the file is encrypted, or of another version, is a RuntimeError.
    except (OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error, zipfile.BadZipFile):
        return False


def read_pickle(path: Path, to_trust: str, trust: bool = False) -> Any:
    """Return the content of a file that `torch.save` wrote, on the CPU.

    Args:
        path: the file.
        to_trust: what a user can do who trusts a file that holds more than tensors and plain data; ends the message.
        trust: whether to allow any pickled object, which may run code while it is loaded.

    Raises:
        UsageError: there is no such file, or it holds more than tensors and plain data while `trust` is not set.
        ProcessingError: the file is damaged, or is no file of torch.
    """
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no such file" if not path.is_dir() else f"{path}: this is a folder, not a file"
        )
    try:
        is_new_format = zipfile.is_zipfile(path)
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise ProcessingError(f"{path}: cannot be read: {error.strerror}") from None
    if not start:
        raise ProcessingError(f"{path}: this file is empty, where a PyTorch checkpoint was expected. {_way_out(path)}")
    if (is_new_format or start == b"PK") and not is_intact(path):
        raise ProcessingError(
            f"{path}: this checkpoint is damaged or cut off: its checksums do not fit. {_way_out(path)}"
        )
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that it did not write
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # a damaged pickle may raise anything
        found = _foreign(path, error) if isinstance(error, pickle.UnpicklingError) else ""
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        reason = "no pickled tensors were found" if isinstance(error, pickle.UnpicklingError) else said
    if found:
        raise UsageError(
            f"{path}: this file holds more than tensors and plain data ({found}). Loading such objects can run any code that "
            f"the file's author put there. Only if you know where it comes from, {to_trust}"
        )
    raise ProcessingError(f"{path}: this is no PyTorch checkpoint, or it is damaged ({reason}). {_way_out(path)}")


def load_checkpoint(path: Path, trust: bool = False) -> dict[str, Any]:
    """Load a checkpoint of nnU-Net to the CPU, and return its content.

    Args:
        path: the checkpoint's file.
        trust: whether to allow any pickled object, which may run code while it is loaded.

    Raises:
        UsageError: there is no such file, or it holds more than tensors and plain data while `trust` is not set.
        ProcessingError: the file is damaged, or is no checkpoint of nnU-Net.
    """
    checkpoint = read_pickle(path, "add --trust", trust)
    kinds: dict[str, type] = {"network_weights": Mapping, "trainer_name": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(_item(checkpoint, name), kind)]
    if wrong:
        raise ProcessingError(
            f"{path}: this is no checkpoint of nnU-Net: it has no {' and no '.join(wrong)}. {_way_out(path)}"
        )
    weights = checkpoint["network_weights"]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise ProcessingError(f"{path}: network_weights: these are not tensors with names. {_way_out(path)}")
    axes = _item(checkpoint, "inference_allowed_mirroring_axes")
    if axes is not None and not _are_axes(axes):
        raise ProcessingError(
            f"{path}: inference_allowed_mirroring_axes: {cut(str(axes))} are no axes, which are 0, 1 and 2, each once. "
            f"{_way_out(path)}"
        )
    return checkpoint


def _are_axes(axes: Any) -> bool:
    """Return whether something is a list of some of the numbers 0, 1 and 2, each once. `True` is no 1 here."""
    return (
        isinstance(axes, list | tuple)
        and all(type(axis) is int and 0 <= axis <= 2 for axis in axes)
        and len(set(axes)) == len(axes)
    )


def _item(checkpoint: Any, name: str) -> Any:
    return checkpoint.get(name) if isinstance(checkpoint, Mapping) else None


def _way_out(path: Path) -> str:
    """Return what to do about a checkpoint that cannot be used."""
    if not path.parent.name.startswith("fold_"):
        return "Copy the file again"
    return f"Copy the file again, or train this fold again{_other_checkpoints(path)}"


def _other_checkpoints(path: Path) -> str:
    """Return the end of a message that offers the other checkpoints of the fold; empty if there is none."""
    others = sorted(other.name for other in path.parent.glob("checkpoint_*.pth") if other.name != path.name)
    return f", or use another checkpoint of it: --checkpoint {' or '.join(others)}" if others else ""


def trained_folds(model: ModelFolder, wanted: Sequence[str] = (), checkpoint: str = FINAL) -> Sequence[str]:
    """Return the names of the folds to use: the wanted ones, or every numbered fold that has the checkpoint.

    Args:
        model: the model folder.
        wanted: names of folds, such as "0" or "all"; empty for every numbered fold, or "all" if there is none.
        checkpoint: file name of the checkpoint in a fold's folder.

    Raises:
        UsageError: a fold has no such checkpoint, and the message lists those that are there; or a fold is given twice.
    """
    if not checkpoint or set(checkpoint) & set("/\\\0"):
        raise UsageError(f"--checkpoint {checkpoint!r}: give the name of a file in the fold's folder, such as {FINAL}")
    twice = next((fold for fold in wanted if list(wanted).count(fold) > 1), None)
    if twice is not None:
        raise UsageError(f"fold {twice} is given twice: its network would count twice")
    files: dict[str, list[str]] = {}
    for path in sorted(model.path.glob("fold_*/*.pth")):
        files.setdefault(path.parent.name.removeprefix("fold_"), []).append(path.name)
    there = [fold for fold, names in files.items() if checkpoint in names]
    missing = [fold for fold in wanted if fold not in there]
    if there and not missing:
        return wanted or [fold for fold in there if fold.isdigit()] or there
    shown = {fold: files[fold] for fold in missing[:1] if fold in files} or ({} if there else files)
    if shown:
        found = "; ".join(f"fold {fold} has {', '.join(names)}" for fold, names in shown.items())
        way_out = f"{found}. Give one of these with --checkpoint, or finish the training (nnUNetv2_train ... --c)"
    else:
        way_out = f"there are {', '.join(there)}" if there else "there is no checkpoint at all: train one first"
    what = f"fold {missing[0]} has no" if missing else "no fold has a"
    raise UsageError(f"{model.path}: {what} {checkpoint}; {way_out}")


def load_weights(network: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into a network.

    Raises:
        UsageError: the weights belong to another network.
        ProcessingError: weights are NaN or infinite.
    """
    if bad := not_finite(checkpoint["network_weights"]):
        raise ProcessingError(
            f"{path}: the weights are not finite ({bad}): the training that wrote them has diverged. Train this fold again"
            f"{_other_checkpoints(path)}"
        )
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{path}: these weights are not of the network the plans describe ({path.parent.parent / 'plans.json'}): {reason}"
        ) from None


def _foreign(path: Path, error: pickle.UnpicklingError) -> str:
    """Return which objects of a file are neither tensors nor plain data; empty if it cannot be read.

    Args:
        path: the file.
        error: what torch said about it.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            return ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # torch tells them of files in the format of today alone, and a damaged pickle may raise anything
        lines = [line.strip() for line in str(error).splitlines() if any(sign in line for sign in _SIGNS_OF_CODE)]
        return lines[0][:200] if lines else ""
