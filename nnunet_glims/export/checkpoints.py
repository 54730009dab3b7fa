"""Loading nnU-Net's checkpoints without running code that may be hidden in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_glims.errors import UsageError


def _harmless() -> list[Any]:
    """NumPy's numbers, which nnU-Net logs its losses in: their types and how they are made again, under old names too."""
    make = np.float64(0).__reduce__()[0]
    kinds = {
        type(np.dtype(name)) for name in ("bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    }
    return [np.dtype, *kinds, *((make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


def load_checkpoint(path: Path, trust: bool = False) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Args:
        trust: allow any pickled object, which may run code while it is loaded.

    Raises:
        UsageError: no such file, a damaged one, or one with more than tensors and plain data and no `trust`.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such checkpoint: train this fold, or choose others with --folds")
    try:
        with torch.serialization.safe_globals(_harmless()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        found = _foreign(path)
        if not found:
            raise UsageError(f"{path}: this checkpoint is damaged ({str(error).splitlines()[0]})") from None
        raise UsageError(
            f"{path}: this checkpoint holds more than numbers ({', '.join(found)}). Loading such objects can run any code "
            "that the file's author put there. Only if you know where it comes from, add --trust"
        ) from None
    except (RuntimeError, EOFError) as error:
        raise UsageError(f"{path}: this checkpoint is damaged ({str(error).splitlines()[0]})") from None
    missing = [key for key in ("network_weights", "trainer_name") if key not in checkpoint]
    if missing:
        raise UsageError(f"{path}: this is no checkpoint of nnU-Net: it has no {' and no '.join(missing)}")
    return checkpoint


def _foreign(path: Path) -> list[str]:
    """Names of the objects in a file that are neither tensors nor plain data; empty where it cannot be read at all."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # any error of a damaged pickle
        return []
