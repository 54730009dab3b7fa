"""Small inputs for every command. A scene is a folder with all that some commands read; its files are the same in every run."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

DATASET = "Dataset777_Cubes"
MODEL = f"results/{DATASET}/nnUNetTrainer__nnUNetPlans__3d_fullres"
TRAINED = f"results/{DATASET}/nnUNetTrainerLATUPNet__nnUNetPlans__3d_fullres"
CASES = ("case_a", "case_b", "case_c")
SHAPE = (14, 18, 16)
LABELS = {"background": 0, "whole": [1, 2], "core": [2]}
DESCRIBED = {
    "channel_names": {"0": "a", "1": "b"},
    "labels": LABELS,
    "regions_class_order": [1, 2],
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
BOARD = """\
title: Two sets of predictions
entries:
  - name: first
    path: first/evaluation
  - name: second
    path: second/evaluation
"""
COMPARISON = """\
title: Two networks
datasets: [777]
entries:
  - name: LATUP-Net
    trainer: nnUNetTrainerLATUPNet
    override: override.json
  - name: nnU-Net
    trainer: nnUNetTrainer
folds: [0]
device: cpu
resources: {gpus: 0, cpus: 1, memory_gb: 4, hours: 1}
"""
OVERRIDE = {
    "description": "a training of seconds",
    "source": "made up",
    "network": "LATUPNet",
    "network_arguments": {"features": [16, 16, 16]},
    "patch_size": [16, 16, 16],
    "batch_size": 2,
    "training": {"epochs": 2, "iterations_per_epoch": 2, "validation_iterations": 1},
}
RULES = {
    "regions": [
        {"name": "whole", "labels": [1, 2], "threshold": 0.5, "paint": 1},
        {"name": "core", "labels": [2], "threshold": 0.45, "paint": 2},
    ],
    "components": [{"label": 2, "smaller_than": 5, "becomes": 1}],
}


def environment(folder: Path) -> dict[str, str]:
    """Return nnU-Net's variables for a scene."""
    return {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}


def labels(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A box of label 1 with a core of label 2, (z, y, x)."""
    found = np.zeros(shape, np.uint8)
    corner = np.random.default_rng(seed).integers(1, 5, 3)
    for label, inset, size in ((1, 0, 9), (2, 3, 4)):
        found[tuple(slice(c + inset, c + inset + size) for c in corner)] = label
    return found


def write_image(path: Path, voxels: np.ndarray, compressed: bool = False) -> Path:
    """Write voxels (z, y, x) by SimpleITK, on a grid of 1 × 1 × 2 mm."""
    import SimpleITK as sitk

    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(path), compressed)
    return path


def _json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4) + "\n")
    return path


def _predictions(root: Path) -> None:
    """Truth and two sets of predictions with probabilities, evaluated; and the same label maps in other formats."""
    from nnunet_glims.cli import main

    for number, case in enumerate(CASES):
        truth = labels(number)
        write_image(root / f"truth/{case}.nii.gz", truth)
        for channel in range(2):
            image = (100 * truth + np.random.default_rng(number).normal(size=SHAPE)).astype(np.float32)
            write_image(root / f"raw/{DATASET}/imagesTs/{case}_{channel:04d}.nii.gz", image)
        for name, shift in (("first", 1), ("second", 2)):
            predicted = np.roll(truth, shift, 2)
            write_image(root / f"{name}/{case}.nii.gz", predicted)
            probabilities = np.stack([0.05 + 0.9 * (predicted > 0), 0.05 + 0.9 * (predicted == 2)]).astype(np.float32)
            np.savez_compressed(root / f"{name}/{case}.npz", probabilities=probabilities)
        for ending in ("nii", "mha", "nrrd"):
            write_image(root / f"{ending}/truth/{case}.{ending}", truth)
            write_image(root / f"{ending}/predicted/{case}.{ending}", np.roll(truth, 1, 2), compressed=ending != "nii")
        (root / "mhd/predicted").mkdir(parents=True, exist_ok=True)
        write_image(root / f"mhd/truth/{case}.mhd", truth)
        write_image(root / f"mhd/predicted/{case}.mhd", np.roll(truth, 1, 2))
    for name in ("first", "second"):
        _json(root / name / "dataset.json", DESCRIBED)
        _json(root / name / "plans.json", {"image_reader_writer": "SimpleITKIO", "plans_name": "nnUNetPlans"})
        assert main(["evaluate", str(root / "truth"), str(root / name), "--workers", "1"]) == 0
    _json(root / f"raw/{DATASET}/dataset.json", DESCRIBED)
    _json(root / "regions.json", {"whole": [1, 2], "core": [2]})
    _json(root / "rules.json", RULES)
    (root / "board.yaml").write_text(BOARD)
    (root / "patients.csv").write_text("case,patient\n" + "".join(f"{case},{case[-1]}\n" for case in CASES))
    (root / "cases.txt").write_text("".join(f"{case}\n" for case in CASES))


def _model(root: Path) -> None:
    """A U-Net of two folds with validation predictions, its preprocessed data set, images, and its export."""
    from nnunet_glims.cli import main
    from tests.export import head, write_case, write_model_folder
    from tests.preprocessed import write_preprocessed

    folder = write_preprocessed(root / "preprocessed")
    model = write_model_folder(root / f"results/{DATASET}", folds=("0", "1"), regions=True)
    _json(model / "dataset.json", {**DESCRIBED, "labels": LABELS})
    splits = [{"train": ["case_b", "case_c"], "val": ["case_a"]}, {"train": ["case_a"], "val": ["case_b", "case_c"]}]
    _json(folder / "splits_final.json", splits)
    for fold, split in enumerate(splits):
        for case in split["val"]:
            truth = labels(CASES.index(case))
            predicted = np.roll(truth, 1, 2)
            probabilities = np.stack([0.05 + 0.9 * (predicted > 0), 0.05 + 0.9 * (predicted == 2)]).astype(np.float32)
            write_image(folder / f"gt_segmentations/{case}.nii.gz", truth)
            write_image(model / f"fold_{fold}/validation/{case}.nii.gz", predicted)
            np.savez_compressed(model / f"fold_{fold}/validation/{case}.npz", probabilities=probabilities)
    for seed, case in enumerate(CASES[:1]):
        write_case(root / "images", case, head((16, 16, 16), seed))
        (file,) = write_case(root / "truth", case, labels(seed, (16, 16, 16))[None])
        file.rename(root / f"truth/{case}.nii.gz")
    (root / f"results/{DATASET}").mkdir(exist_ok=True)
    os.environ.update(environment(root))
    assert main(["export", str(model), str(root / "exported"), "--folds", "0"]) == 0


def _releases(root: Path) -> None:
    """BraTS 2021 as a folder, tar and zip, BTCV as a folder, and splits of both."""
    from tests.datasets.releases import brats_names, write_brats, write_btcv

    (root / "raw").mkdir()
    write_brats(root / "brats", "2021")
    for name in brats_names("2021")[3:]:
        shutil.rmtree(root / "brats" / name)
    (root / "brats/survival_info.csv").unlink()
    kept = brats_names("2021")[:3]
    with tarfile.open(root / "brats.tar", "w") as tar, zipfile.ZipFile(root / "brats.zip", "w") as packed:
        for file in sorted((root / "brats").rglob("*.nii.gz")):
            tar.add(file, file.relative_to(root / "brats"))
            packed.write(file, file.relative_to(root / "brats"), zipfile.ZIP_DEFLATED)
    with gzip.open(root / "brats.tar.gz", "wb") as out:
        out.write((root / "brats.tar").read_bytes())
    write_btcv(root / "btcv", numbers=range(1, 4))
    _json(root / "split.json", [{"train": kept[:2], "val": kept[2:]}, {"train": kept[1:], "val": kept[:1]}])


def _planned(root: Path) -> None:
    """A preprocessed data set with plans, a comparison of it, and overrides."""
    from tests.export import INTENSITIES
    from tests.preprocessed import make_plans, write_preprocessed
    from tests.stock import call

    plans = make_plans("LATUPNet", (16, 16, 16), epochs=3, warmup_epochs=1)
    plans["foreground_intensity_properties_per_channel"] = INTENSITIES
    folder = write_preprocessed(root / "preprocessed", plans)
    raw = root / f"raw/{DATASET}"
    _json(raw / "dataset.json", json.loads((folder / "dataset.json").read_text()))
    for case in (f"cube_{number}" for number in range(4)):
        voxels = labels(int(case[-1]), (36, 36, 36))
        write_image(raw / f"labelsTr/{case}.nii.gz", voxels)
        write_image(folder / f"gt_segmentations/{case}.nii.gz", voxels)
        for channel in range(2):
            write_image(raw / f"imagesTr/{case}_{channel:04d}.nii.gz", voxels.astype(np.float32))
    (root / "results").mkdir()
    shutil.rmtree(folder / "nnUNetPlans_3d_fullres")  # nnU-Net's own files tell it how to export validation cases
    call("nnUNetv2_preprocess", "-d", "777", "-c", "3d_fullres", "-np", "1", **environment(root))
    _json(root / "override.json", OVERRIDE)
    (root / "comparison.yaml").write_text(COMPARISON)


def _stopped(root: Path) -> None:
    """The planned data set, and a training of three epochs that was stopped after two."""
    import torch

    from nnunet_glims.trainers import nnUNetTrainerLATUPNet

    _planned(root)
    os.environ.update(environment(root))
    folder = root / "preprocessed" / DATASET
    plans, described = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    trainer = nnUNetTrainerLATUPNet(plans, "3d_fullres", 0, described, torch.device("cpu"))
    trainer.initialize()
    for trainer.current_epoch in range(2):
        trainer.logger.log("mean_fg_dice", 0.1, trainer.current_epoch)
        for key in ("train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps"):
            trainer.logger.log(key, 0.5, trainer.current_epoch)
        trainer.logger.log("dice_per_class_or_region", [0.1, 0.1], trainer.current_epoch)
        trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_latest.pth"))


def _released(root: Path) -> None:
    """The authors' checkpoint of GLIMS, with made-up weights."""
    import torch

    from tests import golden

    torch.save({"epoch": 99, "state_dict": golden.parameters("glims")}, root / "model.pt")


SCENES: Mapping[str, Callable[[Path], None]] = {
    "predictions": _predictions,
    "model": _model,
    "releases": _releases,
    "planned": _planned,
    "stopped": _stopped,
    "released": _released,
}


def build(name: str, folder: Path) -> Path:
    """Write a scene to a new folder of its name. This uses threads: in a campaign it is done by a forked process."""
    place = folder / name
    place.mkdir(parents=True)
    SCENES[name](place)
    return place
