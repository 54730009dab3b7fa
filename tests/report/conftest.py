"""Evaluated folders to compare: a good, a fair and a poor set of predictions of the same cases, with images."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_glims.cli import main

CASES = 8
DATASET = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {"background": 0, "whole_tumor": [1, 2], "enhancing_tumor": 2},
    "regions_class_order": [1, 2],
    "file_ending": ".nii.gz",
    "numTraining": CASES,
}


def write(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 1.0, 3.0))
    sitk.WriteImage(image, str(path))


def truth(number):
    labels = np.zeros((10, 30, 30), np.uint8)
    labels[2:8, 8 : 18 + number % 3, 8:18] = 1
    labels[4:6, 10:14, 10:14] = 2
    return labels


def copy_without_first_cases(evaluated, folder, count):
    """A copy of evaluated predictions in which the first cases were not evaluated."""
    shutil.copytree(evaluated, folder)
    record, summary = folder / "evaluation/cases.jsonl", folder / "evaluation/summary.json"
    record.write_text("".join(record.read_text().splitlines(keepends=True)[count:]))
    fewer = dict.fromkeys(("cases", "records"), CASES - count)
    summary.write_text(json.dumps({**json.loads(summary.read_text()), **fewer}))


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """A folder with labelsTs, imagesTs, and the evaluated good, fair and poor: moved by 0 or 1, 2, and 4 or 5 voxels."""
    folder = tmp_path_factory.mktemp("board")
    rng = np.random.default_rng(0)
    for number in range(CASES):
        labels = truth(number)
        name = f"case_{number}"
        write(folder / f"labelsTs/{name}.nii.gz", labels)
        for channel in range(2):
            image = 100 + 40 * labels + rng.normal(0, 10, labels.shape)
            write(folder / f"imagesTs/{name}_{channel:04d}.nii.gz", image.astype(np.float32))
        for entry, shift in (("good", number % 2), ("fair", 2), ("poor", 4 + number % 2)):
            write(folder / f"{entry}/{name}.nii.gz", np.roll(labels, shift, 2))
    for entry in ("good", "fair", "poor"):
        (folder / entry / "dataset.json").write_text(json.dumps(DATASET))
        assert main(["evaluate", str(folder / "labelsTs"), str(folder / entry), "--workers", "1"]) == 0
    return folder
