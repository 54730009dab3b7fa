"""A preprocessed data set of random cubes in nnU-Net's layout, made in a second without planning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

DATASET = "Dataset777_Cubes"
CONFIGURATION = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [32, 32, 32],
    "median_image_size_in_voxels": [36.0, 36.0, 36.0],
    "spacing": [1.0, 1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
    "use_mask_for_norm": [False, False],
    **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
    **{
        f"resampling_fn_{what}_kwargs": {"is_seg": what == "seg", "order": 1, "order_z": 0, "force_separate_z": None}
        for what in ("data", "seg", "probabilities")
    },
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]},
        "_kw_requires_import": [],
    },
    "batch_dice": False,
}
TINY = {
    "GLIMS": {"feature_size": 3, "num_heads": [3] * 5, "depths": [1] * 5},
    "LATUPNet": {"features": [16, 16, 16]},
    "SwinUNETR": {"feature_size": 12, "depths": [1] * 4},
}
SHORT = {"epochs": 2, "iterations_per_epoch": 2, "validation_iterations": 1, "augmentation": "none"}


def make_plans(network: str | None = None, patch_size=(32, 32, 32), **training) -> dict:
    """Plans as nnU-Net writes them; with a network, they name our class at its smallest."""
    configuration = json.loads(json.dumps({**CONFIGURATION, "patch_size": list(patch_size)}))
    configuration["training"] = {**SHORT, **training}
    if network is not None:
        configuration["architecture"] = {
            "network_class_name": f"nnunet_glims.architectures.{network}",
            "arch_kwargs": dict(TINY[network]),
            "_kw_requires_import": [],
        }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [36, 36, 36],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": {**CONFIGURATION, "patch_size": [32, 32], "data_identifier": "nnUNetPlans_2d"},
            "3d_fullres": configuration,
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }


def dataset_json(regions: bool = False) -> dict:
    """Two channels, labels 1 and 2, as plain labels or as nested regions."""
    labels: dict = {"background": 0, "cube": 1, "core": 2}
    content = {"channel_names": {"0": "a", "1": "b"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    if regions:
        content["labels"] = {"background": 0, "whole": [1, 2], "core": [2]}
        content["regions_class_order"] = [1, 2]
    return content


def write_preprocessed(root: Path, plans: dict | None = None, regions: bool = False) -> Path:
    """Write four cases of 36³ voxels with a bright cube each, split for fold 0; returns the data set's folder."""
    folder = root / DATASET
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "gt_segmentations").mkdir()
    (folder / "dataset.json").write_text(json.dumps(dataset_json(regions)))
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans or make_plans()))
    (folder / "dataset_fingerprint.json").write_text("{}")
    cases = [f"cube_{number}" for number in range(4)]
    (folder / "splits_final.json").write_text(json.dumps([{"train": cases[:3], "val": cases[3:]}]))
    rng = np.random.default_rng(0)
    for case in cases:
        labels = np.zeros((1, 36, 36, 36), np.int8)
        corner = rng.integers(4, 16, 3)
        box = tuple(slice(c, c + 14) for c in corner)
        labels[(0, *box)] = 1
        labels[(0, *(slice(c + 4, c + 10) for c in corner))] = 2
        image = rng.normal(size=(2, 36, 36, 36)).astype(np.float32) + 2 * labels
        locations = {
            **{label: np.argwhere(labels == label)[::5] for label in (1, 2)},
            (1, 2): np.argwhere(labels > 0)[::5],
            (2,): np.argwhere(labels == 2)[::5],
        }
        nnUNetDatasetBlosc2.save_case(
            image,
            labels,
            {"class_locations": locations, "spacing": [1.0, 1.0, 1.0]},
            str(folder / "nnUNetPlans_3d_fullres" / case),
            chunks=(2, 36, 36, 36),
            blocks=(1, 36, 36, 36),
        )
    return folder
