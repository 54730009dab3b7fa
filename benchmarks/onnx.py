"""Compare predictions of an export with those of `nnUNetv2_predict`, both without mirroring: time and agreement.

    python -m benchmarks.onnx MODELFOLDER IMAGES SCRATCH [--folds 0 1] [--threads 2] [--precision fp32]

Times are those of the commands on the CPU, with the start of Python. With a single case in IMAGES they are the time of
one case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmarks.cpu import processor
from nnunet_glims.evaluation.regions import Regions
from nnunet_glims.nnunet.folders import regions_of
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.processes import available_cores, find_program


def timed(*command: object) -> float:
    started = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def agreement(reference: Path, found: Path, regions: Regions) -> dict[str, object]:
    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (reference, found))
    dice = {}
    for name, labels in regions.items():
        one, other = np.isin(first, labels), np.isin(second, labels)
        dice[name] = (
            round(float(2 * (one & other).sum() / (one.sum() + other.sum())), 5) if one.any() or other.any() else None
        )
    different = int((first != second).sum())
    same = {"voxels": round(1 - different / first.size, 6), "different_voxels": different}
    return {"size": first.shape, **same, "labelled_voxels": int((first > 0).sum()), "dice": dice}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--folds", default=["0"], nargs="+")
    parser.add_argument("--threads", default=available_cores(), type=int)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    ours = (sys.executable, "-m", "nnunet_glims")
    export, reference, found = (options.scratch / name for name in ("export", "nnunet", "onnx"))
    regions = regions_of(ModelFolder(options.model).dataset_json)
    options.scratch.mkdir(parents=True)
    arguments = ("--folds", ",".join(options.folds), "--precision", options.precision)
    subprocess.run([*ours, "export", str(options.model), str(export), *arguments], check=True)

    nnunet = find_program("nnUNetv2_predict_from_modelfolder")
    paths = ("-i", options.images, "-o", reference, "-m", options.model, "-f", *options.folds)
    seconds = {
        "nnUNetv2_predict": timed(nnunet, *paths, "--disable_tta", "-device", "cpu", "-npp", 1, "-nps", 1),
        "predict-onnx": timed(
            *ours, "predict-onnx", export, options.images, "-o", found, "--disable_tta", "--threads", options.threads
        ),
    }
    result = {
        "processor": processor(),
        "threads": options.threads,
        "model": options.model.name,
        "folds": options.folds,
        "precision": options.precision,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "agreement": {
            path.name: agreement(path, found / path.name, regions) for path in sorted(reference.glob("*.nii.gz"))
        },
    }
    print(json.dumps(result, indent=4))


if __name__ == "__main__":
    main()
