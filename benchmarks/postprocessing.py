"""Measure the time of `nnunet-glims postprocess --preset glims_brats2023` per case of 240×240×155.

    python -m benchmarks.postprocessing CASES [--models 2] [--workers 2]

CASES is a folder with cases of BraTS 2018. Probabilities are made from their segmentations: blurred, with noise in the
whole brain and zeros outside of it, and saved as nnU-Net saves them.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from nnunet_glims.postprocessing.case import postprocessed_label_map
from nnunet_glims.postprocessing.folders import postprocess
from nnunet_glims.postprocessing.probabilities import Heads, read_probabilities
from nnunet_glims.postprocessing.rules import PRESETS
from nnunet_glims.releases import brats

PRESET = PRESETS["glims_brats2023"]
DATASET = {"labels": brats.LABELS, "regions_class_order": list(brats.REGIONS_CLASS_ORDER), "file_ending": ".nii.gz"}


def write_case(source: Path, folder: Path, seed: int) -> None:
    """Write a model's prediction of a case."""
    (file,) = source.glob("*_seg.nii*")
    (flair,) = source.glob("*_flair.nii*")
    image = sitk.ReadImage(str(file))
    labels = sitk.GetArrayFromImage(image)
    labels[labels == 4] = brats.ENHANCING
    brain = sitk.GetArrayFromImage(sitk.ReadImage(str(flair))) != 0
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(brain))
    rng = np.random.default_rng(seed)
    probabilities = np.zeros((3, *labels.shape), np.float32)
    for channel, region in enumerate(PRESET.regions):
        near = gaussian_filter(np.isin(labels[box], region.labels).astype(np.float32), 1)
        noise = gaussian_filter(rng.normal(size=near.shape).astype(np.float32), 1.5)
        probabilities[(channel, *box)] = 1 / (1 + np.exp(-(12 * near - 6 + 1.5 * noise / noise.std())))
    np.savez_compressed(folder / f"{source.name}.npz", probabilities=probabilities)
    painted = np.zeros(labels.shape, np.uint8)
    for region, mask in zip(PRESET.regions, probabilities, strict=True):
        painted[mask > 0.5] = region.paint
    written = sitk.GetImageFromArray(painted)
    written.CopyInformation(image)
    sitk.WriteImage(written, str(folder / f"{source.name}.nii.gz"))


def processor_seconds() -> float:
    """Return the processor time of this process and of its ended children."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    from benchmarks.cpu import processor  # imports torch, which the workers need not

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="how often each case is included")
    arguments = parser.parse_args()
    sources = sorted(path for path in arguments.cases.iterdir() if path.is_dir())
    result: dict[str, object] = {"machine": processor(), "workers": arguments.workers}
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / f"model_{number}" for number in range(arguments.models)]
        for number, folder in enumerate(folders):
            folder.mkdir()
            (folder / "dataset.json").write_text(json.dumps(DATASET))
            for source in sources:
                write_case(source, folder, number)
                for copy in range(1, arguments.repeats):
                    for ending in (".npz", ".nii.gz"):
                        (folder / f"{source.name}_{copy}{ending}").symlink_to(folder / f"{source.name}{ending}")
        count = len(sources) * arguments.repeats
        for models in (1, arguments.models):
            started, used = time.perf_counter(), processor_seconds()
            changed = postprocess(folders[:models], PRESET, Path(temporary) / f"out_{models}", arguments.workers)
            seconds = time.perf_counter() - started
            result[f"seconds a case, {models} models, of {count} cases"] = round(seconds / count, 3)
            used = processor_seconds() - used
            result[f"processor seconds a case, {models} models, with starting processes"] = round(used / count, 3)
            result[f"changed voxels a case, {models} models"] = sum(changed.values()) // count
        files = sorted(folders[0].glob("*.npz"))[: len(sources)]
        heads = Heads.of_dataset(DATASET)
        started = time.process_time()
        opened = [read_probabilities(file) for file in files]
        read = time.process_time()
        for probabilities in opened:
            postprocessed_label_map([probabilities], heads, PRESET)
        result["processor seconds: reading probabilities"] = round((read - started) / len(files), 3)
        result["processor seconds: rules"] = round((time.process_time() - read) / len(files), 3)
    print(json.dumps(result, indent=4, ensure_ascii=False))


if __name__ == "__main__":
    main()
