"""Seconds of predicting whole cases with an export beside `nnUNetv2_predict`, both without mirroring, and how they agree.

    python -m benchmarks.onnx MODELFOLDER IMAGES SCRATCH [--fold 0] [--threads 2] [--precision fp32]

Times are of whole commands, start of Python included, on the CPU; with a single case in IMAGES they are what one case costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmarks.cpu import processor


def timed(*command: object) -> float:
    started = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def agreement(reference: Path, found: Path) -> dict[str, object]:
    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (reference, found))
    dice = {}
    for label in np.unique(first[first > 0]):
        one, other = first == label, second == label
        dice[int(label)] = round(float(2 * (one & other).sum() / (one.sum() + other.sum())), 5)
    return {"voxels": round(float((first == second).mean()), 6), "dice": dice}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--threads", default=os.cpu_count(), type=int)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    ours = (sys.executable, "-m", "nnunet_glims")
    export, reference, found = (options.scratch / name for name in ("export", "nnunet", "onnx"))
    options.scratch.mkdir(parents=True)
    arguments = ("--folds", options.fold, "--precision", options.precision)
    subprocess.run([*ours, "export", str(options.model), str(export), *arguments], check=True)

    nnunet = Path(sysconfig.get_path("scripts"), "nnUNetv2_predict_from_modelfolder")
    paths = ("-i", options.images, "-o", reference, "-m", options.model, "-f", options.fold)
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
        "precision": options.precision,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "agreement": {path.name: agreement(path, found / path.name) for path in sorted(reference.glob("*.nii.gz"))},
    }
    print(json.dumps(result, indent=4))


if __name__ == "__main__":
    main()
