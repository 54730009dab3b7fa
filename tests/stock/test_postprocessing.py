"""Post-processing of what stock nnU-Net saved for networks trained on the tiny data set."""

import json

import numpy as np
import pytest

from nnunet_glims.cli import main

from . import DATASET, model_folder, segmentation

pytestmark = pytest.mark.slow


def test_painted_at_one_half_nnunets_probabilities_give_its_labels(prediction, folders, tmp_path):
    described = json.loads((folders["nnUNet_raw"] / DATASET / "dataset.json").read_text())
    regions = [
        {"name": name, "labels": labels if isinstance(labels, list) else [labels], "paint": paint}
        for (name, labels), paint in zip(list(described["labels"].items())[1:], described["regions_class_order"])
    ]
    (tmp_path / "half.json").write_text(json.dumps({"regions": regions}))
    assert (
        main(["postprocess", str(prediction), "-o", str(tmp_path / "o"), "--preset", str(tmp_path / "half.json")]) == 0
    )
    assert np.array_equal(segmentation(tmp_path / "o"), segmentation(prediction))


def test_rules_are_fitted_to_a_trained_models_folds(five_folds, prediction, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(five_folds["nnUNet_preprocessed"]))
    monkeypatch.setenv("nnUNet_raw", str(five_folds["nnUNet_raw"]))
    rules = tmp_path / "rules.json"
    assert main(["postprocess-fit", str(model_folder(five_folds)), "-o", str(rules), "--workers", "1"]) == 0
    fitted = json.loads(rules.read_text())["fitted"]
    assert (fitted["cases"], fitted["folds"]) == (10, 5)
    assert main(["postprocess", str(prediction), "-o", str(tmp_path / "out"), "--preset", str(rules)]) == 0
    assert segmentation(tmp_path / "out").shape == segmentation(prediction).shape
