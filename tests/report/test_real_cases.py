"""Known damage to real segmentations: numbers and ranks are what they must be."""

import csv
import json

import cc3d
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_glims.cli import main

pytestmark = pytest.mark.realdata


def shifted(labels):
    return np.roll(labels, 1, 2)


def without_small_components(labels):
    components = cc3d.connected_components(labels > 0, connectivity=26)
    return np.where(cc3d.dust(components, threshold=500) > 0, labels, 0)


def without_enhancing(labels):
    return np.where(labels == 3, 1, labels)


DAMAGE = {"shifted": shifted, "no_small": without_small_components, "no_enhancing": without_enhancing}


def test_three_kinds_of_damage(real_cases, tmp_path):
    truths = {}
    for file in sorted((real_cases / "brats2018").glob("*/*_seg.nii*")):
        image = sitk.ReadImage(str(file))
        labels = sitk.GetArrayFromImage(image)
        labels[labels == 4] = 3
        truths[file.parent.name] = labels
        for name, damage in {"truth": lambda labels: labels, **DAMAGE}.items():
            (tmp_path / name).mkdir(exist_ok=True)
            written = sitk.GetImageFromArray(damage(labels).astype(np.uint8))
            written.CopyInformation(image)
            sitk.WriteImage(written, str(tmp_path / name / f"{file.parent.name}.nii.gz"))
    for name in DAMAGE:
        command = ["evaluate", str(tmp_path / "truth"), str(tmp_path / name), "--regions", "brats"]
        assert main([*command, "--preset", "brats2021"]) == 0
    out = tmp_path / "out"
    assert main(["leaderboard", *(f"{name}={tmp_path / name}" for name in DAMAGE), "-o", str(out)]) == 0

    with (out / "leaderboard.csv").open() as file:
        means = {(row["entry"], row["region"], row["metric"]): float(row["mean"]) for row in csv.DictReader(file)}
    has_enhancing = np.array([(labels == 3).any() for labels in truths.values()])
    assert means["no_enhancing", "enhancing_tumor", "dice"] == pytest.approx(1 - has_enhancing.mean())
    assert means["no_enhancing", "enhancing_tumor", "hd95"] == pytest.approx(373.1287 * has_enhancing.mean())
    assert means["no_enhancing", "whole_tumor", "dice"] == means["no_enhancing", "tumor_core", "dice"] == 1
    for region, labels in (("whole_tumor", (1, 2, 3)), ("tumor_core", (1, 3)), ("enhancing_tumor", (3,))):
        masks = [np.isin(truth, labels) for truth in truths.values()]
        dice = [2 * (mask & shifted(mask)).sum() / (2 * mask.sum()) for mask in masks if mask.any()]
        assert means["shifted", region, "dice"] == pytest.approx(np.mean([*dice, *[1.0] * (6 - len(dice))]))
        assert means["shifted", region, "hd95"] <= 1
        assert means["no_small", region, "dice"] > means["shifted", region, "dice"]

    lines = (out / "leaderboard.md").read_text().splitlines()
    order = [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")][2:5]
    assert order[0] == "no_small" and order[-1] == "shifted"
    size = (out / "leaderboard.html").stat().st_size
    shown = json.loads((out / "leaderboard.html").read_text().split('id="stacks">')[1].split("</script>")[0])
    assert len(shown) == 6
    assert size / len(shown) < 15e6 / 20, "20 such cases would be more than 15 MB"
