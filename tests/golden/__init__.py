"""Reference values computed with the authors' released models; see README.md here."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from tests.golden.fill import fill, volume

FOLDER = Path(__file__).parent


def keys(network: str, variant: str | None = None) -> list[dict[str, str]]:
    """Rows (key, shape, kind) of a released model's parameters."""
    with open(FOLDER / f"{network}_released_keys.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [row for row in rows if variant is None or row["variant"] == variant]


def parameters(network: str, variant: str | None = None) -> dict[str, torch.Tensor]:
    """The parameters the reference values were computed with, under their released names."""
    return {
        row["key"]: torch.from_numpy(fill(row["key"], [int(n) for n in row["shape"].split("x")], row["kind"]))
        for row in keys(network, variant)
    }


def values(network: str, entry: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Positions in the flattened output, the values there, standard deviation of the whole output."""
    with np.load(FOLDER / f"{network}_released.npz") as file:
        return file[f"{entry}.index"], file[f"{entry}.value"], float(file[f"{entry}.mean_std"][1])


__all__ = ["fill", "keys", "parameters", "values", "volume"]
