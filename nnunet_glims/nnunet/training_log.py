"""Read nnU-Net's training logs of a fold: curves, time, seconds for a validation case, peak memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import isnan
from pathlib import Path
from statistics import mean, median

from nnunet_glims.errors import UserError
from nnunet_glims.files import read_json

TRAINING_LOCK = ".nnunet_glims_training.lock"
"""Name of the lock in a fold's folder that a trainer of this package holds while it trains or validates."""
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+): (.*)")
_PEAK = re.compile(r"Peak memory: ([\d.]+) GiB")


@dataclass(frozen=True)
class TrainingLog:
    """The training log of one fold.

    Attributes:
        curves: "training loss", "validation loss" and "pseudo Dice" -> one value for each epoch. Pseudo Dice is the mean
            over the classes that have a value. Epochs that were repeated after an interruption count once.
        hours: sum of the epochs' times; None if no epoch was completed.
        device: "cpu", "cuda:0", ...; None if it is not known.
        case_seconds: median time from the start of one validation case to the next; None for fewer than three cases.
        peak_gib: peak memory in GiB; None if the trainer does not log it.
    """

    curves: Mapping[str, Sequence[float]]
    hours: float | None
    device: str | None
    case_seconds: float | None
    peak_gib: float | None


def read_training_log(fold: Path) -> TrainingLog:
    """Read all training logs in the folder of a fold, in the order of their time."""
    epochs: dict[int, dict[str, float]] = {}
    current: dict[str, float] = {}
    seconds: list[float] = []
    peaks = []
    for path in sorted(fold.glob("training_log_*.txt"), key=_time_of):
        started: datetime | None = None
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, IndexError):  # a line that was cut off when the disk was full
                match = _LINE.match(line)
                if match is None:
                    continue
                time, text = datetime.fromisoformat(match[1]), match[2].strip()
                name, _, value = text.partition(" ")
                if name == "Epoch" and value.isdigit():
                    # The training was continued from this epoch after an interruption.
                    epochs = {number: epoch for number, epoch in epochs.items() if number < int(value)}
                    current = epochs[int(value)] = {}
                elif name in ("train_loss", "val_loss"):
                    current[{"train_loss": "training loss", "val_loss": "validation loss"}[name]] = float(value)
                elif text.startswith("Pseudo dice"):
                    # NumPy 2 writes np.float32(0.81), earlier versions 0.81
                    values = [float(number) for number in re.findall(r"(?<![a-z\d])(\d+\.?\d*(?:e-?\d+)?|nan)", text)]
                    known = [dice for dice in values if not isnan(dice)]  # a class that no patch contained has no value
                    current["pseudo Dice"] = mean(known) if known else float("nan")
                elif text.startswith("Epoch time:"):
                    current["seconds"] = float(text.split()[2])
                elif name == "predicting":
                    if started is not None:
                        seconds.append((time - started).total_seconds())
                    started = time
                elif peak := _PEAK.match(text):
                    peaks.append(float(peak[1]))
    ended = [epochs[number] for number in sorted(epochs) if "seconds" in epochs[number]]
    curves = {
        name: [epoch.get(name, float("nan")) for epoch in ended]
        for name in ("training loss", "validation loss", "pseudo Dice")
    }
    return TrainingLog(
        curves,
        sum(epoch["seconds"] for epoch in ended) / 3600 if ended else None,
        _device(fold / "debug.json"),
        median(seconds) if len(seconds) > 1 else None,
        max(peaks, default=None),
    )


def _device(debug: Path) -> str | None:
    """Return the device in nnU-Net's debug.json; None if the file is missing or damaged."""
    try:
        return str(read_json(debug, nan_allowed=True)["device"])
    except (UserError, KeyError, TypeError):
        return None


def _time_of(log: Path) -> list[int]:
    """Return the numbers from year to second in a log's name, in which month and day have no leading zeros."""
    return [int(number) for number in re.findall(r"\d+", log.stem)]
