"""Read the probabilities that nnU-Net saves with --save_probabilities, and average those of several models."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import IO, Any

import numpy as np

from nnunet_glims.errors import ProcessingError, UsageError, UserError
from nnunet_glims.image_formats.content import check_length
from nnunet_glims.images import is_finite, not_finite

_KEY = "probabilities"
_LIMIT = 1e-7
"""Float32 cannot hold probabilities closer to 1 than this. So logits beyond ±16 count as ±16."""
_ROUNDING = 1e-2
"""By how much float16 and sums may take probabilities out of the range from 0 to 1."""
_DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, SyntaxError, MemoryError),
    *(TypeError, ArithmeticError, RuntimeError),  # NotImplementedError is a RuntimeError
    tokenize.TokenError,  # NumPy parses headers of old Python versions
)
"""What zipfile and NumPy raise for damaged files."""


@dataclass(frozen=True)
class Heads:
    """What the channels of the probabilities are.

    Attributes:
        labels: the labels that each channel stands for. With `exclusive` these are single labels, background first.
        painted: the label that nnU-Net assigns where a channel's probability is above 0.5, or the highest if
            `exclusive`.
        exclusive: whether channels are labels whose probabilities sum to 1 (softmax), not regions (sigmoid).
    """

    labels: tuple[tuple[int, ...], ...]
    painted: tuple[int, ...]
    exclusive: bool

    @classmethod
    def of_dataset(cls, dataset_json: Mapping[str, Any], where: str) -> Heads:
        """Return the channels that nnU-Net's label manager derives from dataset.json; `where` names it in messages.

        Raises:
            UsageError: nnU-Net refuses the labels.
        """
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        order = dataset_json.get("regions_class_order", ())
        try:
            manager = LabelManager(dataset_json["labels"], order)
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise UsageError(f"{where}: labels: nnU-Net refuses these: {error}") from None
        if manager.has_regions:
            regions = [
                tuple(region) if isinstance(region, tuple) else (region,) for region in manager.foreground_regions
            ]
            return cls(tuple(tuple(int(label) for label in region) for region in regions), tuple(order), False)
        labels = tuple(int(label) for label in manager.all_labels)
        return cls(tuple((label,) for label in labels), labels, True)

    def channels(self, region: Collection[int]) -> list[int]:
        """Return the channels whose probabilities sum to that of a region, given by its labels.

        Raises:
            UsageError: no channels do.
        """
        if self.exclusive:
            found = [channel for channel, (label,) in enumerate(self.labels) if label in region]
            complete = len(found) == len(set(region))
        else:
            found = [channel for channel, labels in enumerate(self.labels) if set(labels) == set(region)]
            complete = len(found) == 1
        if not complete:
            known = ", ".join(str(list(labels)) for labels in self.labels)
            raise UsageError(
                f"the models have no probability for the region of labels {sorted(region)}, but for {known}: "
                "name one of these in the rules"
            )
        return found

    def probability(self, probabilities: np.ndarray, region: Collection[int]) -> np.ndarray:
        """Return the probability (...) of a region, given by its labels, from the probabilities (C, ...) of all channels."""
        channels = self.channels(region)
        return probabilities[channels[0]] if len(channels) == 1 else probabilities[channels].sum(0)


def shape_of(file: Path) -> tuple[int, ...]:
    """Return the shape (C, Z, Y, X) that the header of a .npz states; raises what `read_probabilities` raises."""
    with _open_array(file) as member:
        return _header(file, member)[0]


def read_probabilities(file: Path) -> np.ndarray:
    """Return the probabilities (C, Z, Y, X) of a .npz, float16, float32 or float64.

    The order of the axes is that of SimpleITK's array of the label map beside the file.

    Raises:
        UsageError: there is no such file, nnU-Net did not write it, or its values are no probabilities.
        ProcessingError: the file is damaged, or has values that are not finite.
    """
    with _open_array(file) as member:
        shape, dtype, columns_first = _header(file, member)
        content = member.read()  # to the end, where its checksum is compared
        check_length(len(content), shape, dtype.itemsize)
    values = np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")
    if not is_finite(values):
        raise ProcessingError(f"{file}: {not_finite(values)}: predict this case again")
    lowest, highest = float(values.min(initial=0)), float(values.max(initial=0))
    if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
        raise UsageError(f"{file}: holds values from {lowest:g} to {highest:g}, which are no probabilities")
    return values


def check_sums(values: np.ndarray, file: Path) -> None:
    """Raise `ProcessingError` unless the probabilities (C, Z, Y, X) of a file sum to 1 over channels, up to rounding."""
    sums = values.sum(0, dtype=np.float32)
    lowest, highest = float(sums.min(initial=1)), float(sums.max(initial=1))
    if lowest < 1 - _ROUNDING or highest > 1 + _ROUNDING:
        raise ProcessingError(
            f"{file}: the probabilities of a voxel sum to {lowest:g} up to {highest:g}, not to 1: predict this case again"
        )


def _header(file: Path, member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Return shape, data type and whether the first axis varies fastest, from the beginning of an array's file."""
    major, _ = np.lib.format.read_magic(member)
    read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read_header(member)
    if dtype.kind != "f" or len(shape) != 4:
        raise UsageError(
            f"{file}: holds {dtype} with {len(shape)} axes, not probabilities (channel, z, y, x) of a 3D image"
        )
    return shape, dtype, columns_first


@contextmanager
def _open_array(file: Path) -> Iterator[IO[bytes]]:
    """Open the array inside of a .npz."""
    try:
        if file.exists() and not file.is_file():
            raise ProcessingError(f"{file}: this is no regular file: predict this case again")
        with zipfile.ZipFile(file) as archive, archive.open(f"{_KEY}.npy") as member:
            yield member
    except UserError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{file}: there is no such file: predict with --save_probabilities") from None
    except KeyError:
        raise UsageError(f"{file}: has no {_KEY!r}: this was not written by nnU-Net's --save_probabilities") from None
    except _DAMAGES as error:
        raise ProcessingError(f"{file}: damaged ({error}): predict this case again") from None


def mean_probabilities(models: Sequence[np.ndarray], exclusive: bool) -> np.ndarray:
    """Return the probabilities (C, ...) that belong to the mean of several models' logits.

    Args:
        models: probabilities (C, ...) of each model.
        exclusive: whether channels sum to 1. Logits are the logarithms of the probabilities then, and the result is
            scaled to sum to 1.
    """
    if len(models) == 1:
        return models[0]
    total = reduce(np.add, (_logits(model, exclusive) for model in models))
    total /= len(models)
    if not exclusive:
        return 1 / (1 + np.exp(-total))
    total -= total.max(0)
    np.exp(total, out=total)
    return total / total.sum(0)


def _logits(probabilities: np.ndarray, exclusive: bool) -> np.ndarray:
    clipped = np.clip(probabilities.astype(np.float32), _LIMIT, 1 - _LIMIT)
    return np.log(clipped) if exclusive else np.log(clipped) - np.log1p(-clipped)
