"""Seconds of the metrics beside the libraries that define them, on one real BraTS case with a few stray voxels far away.

    python -m benchmarks.evaluation CASE [--repeats 5]

CASE is a folder of BraTS 2018. One thread; needs surface-distance 0.1 and MONAI (the extras test and swinunetr).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import surface_distance
import torch
from monai.metrics import compute_hausdorff_distance

from benchmarks.cpu import processor
from nnunet_glims.evaluation import PRESETS, measure_case
from nnunet_glims.evaluation.regions import NAMED_REGIONS
from nnunet_glims.evaluation.surfaces import Definition, SurfaceDistances, surface_of
from nnunet_glims.images import read_label_map

SPACING = (1.0, 1.0, 1.0)


def case(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The truth, and the truth moved by two voxels with a few voxels in the image's corners."""
    (file,) = folder.glob("*_seg.nii*")
    truth = read_label_map(file).labels.copy()
    truth[truth == 4] = 3
    prediction = np.roll(truth, (1, 2, -1), (0, 1, 2))
    for corner in ((3, 3, 3), (-4, 5, -6), (5, -3, 7), (-3, -3, -3)):
        prediction[corner] = 3
    return truth, prediction


def ours(definition: Definition):
    def hd95(truth: np.ndarray, prediction: np.ndarray) -> float:
        surfaces = [surface_of(mask, SPACING, definition) for mask in (truth, prediction)]
        return SurfaceDistances.between(*surfaces, definition).hausdorff(95)

    return hd95


def by_surface_distance(truth: np.ndarray, prediction: np.ndarray) -> float:
    distances = surface_distance.compute_surface_distances(truth, prediction, SPACING)
    return surface_distance.compute_robust_hausdorff(distances, 95)


def by_monai(truth: np.ndarray, prediction: np.ndarray) -> float:
    masks = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    return float(compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=SPACING))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    truth, prediction = case(arguments.case)
    regions = NAMED_REGIONS["brats"]
    masks = [(np.isin(truth, labels), np.isin(prediction, labels)) for labels in regions.values()]
    ways = {
        "surfels": ours("surfels"),
        "surface-distance": by_surface_distance,
        "voxels": ours("voxels"),
        "MONAI": by_monai,
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "whole table")}
    values = {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            values[name] = [way(*pair) for pair in masks]
            seconds[name].append(time.perf_counter() - started)
        started = time.perf_counter()
        measure_case(truth, prediction, SPACING, regions, PRESETS["brats2023-gli"])
        seconds["whole table"].append(time.perf_counter() - started)
    medians = {name: round(statistics.median(taken), 3) for name, taken in seconds.items()}
    result = {
        "machine": processor(),
        "case": f"{arguments.case.name}, {truth.shape}, HD95 of three regions",
        "repeats": arguments.repeats,
        "seconds": medians,
        "surfels faster than surface-distance": round(medians["surface-distance"] / medians["surfels"], 1),
        "voxels faster than MONAI": round(medians["MONAI"] / medians["voxels"], 1),
        "hd95": values,
    }
    print(json.dumps(result, indent=4))


if __name__ == "__main__":
    main()
