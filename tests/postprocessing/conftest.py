"""Folders of predictions as nnU-Net writes them: label maps, probabilities, dataset.json, plans.json."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

BRATS = {
    "channel_names": {"0": "FLAIR"},
    "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": 3},
    "regions_class_order": [2, 1, 3],
    "file_ending": ".nii.gz",
}
ORGANS = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "spleen": 2},
    "file_ending": ".nii.gz",
}
SPACING = (0.9, 1.1, 2.0)
ORIGIN = (-3.0, 5.0, 7.5)


def write_labels(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.asarray(labels, np.uint8))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    sitk.WriteImage(image, str(path))


def read_labels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def by_nnunet(probabilities, dataset_json):
    """nnU-Net's own labels."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    return np.asarray(manager.convert_probabilities_to_segmentation(np.asarray(probabilities, np.float32)))


def write_prediction(folder, case, probabilities, dataset_json=BRATS):
    """(C, Z, Y, X) probabilities, and beside them the label map that nnU-Net makes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{case}.npz", probabilities=np.asarray(probabilities, np.float32))
    write_labels(folder / f"{case}.nii.gz", by_nnunet(probabilities, dataset_json))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    (folder / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))


def smooth(seed, channels=3, shape=(14, 20, 18), sharp=6):
    """Random sigmoid probabilities that hang together."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(channels, *shape)), (0, 1.2, 1.2, 1.2))
    return 1 / (1 + np.exp(-sharp * noise / noise.std()))


@pytest.fixture
def predicted(tmp_path):
    """A model's predictions of two cases."""
    for seed, case in enumerate(("case_a", "case_b")):
        write_prediction(tmp_path / "model", case, smooth(seed))
    return tmp_path / "model"
