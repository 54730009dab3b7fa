import json
from zipfile import ZipFile

import numpy as np
import pytest

from . import (
    CONFIGURATION,
    DATASET,
    FOLDS,
    GLIMS,
    LATUPNET,
    PLANS,
    assert_same_prediction,
    predict,
    probabilities,
    run_command,
    segmentation,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def best_configuration(five_folds):
    """What nnUNetv2_find_best_configuration says about GLIMS, LATUPNet and both together."""
    command = ("nnUNetv2_find_best_configuration", DATASET, "-c", CONFIGURATION, "-p", PLANS, "-tr", GLIMS, LATUPNET)
    run_command(*command, "-np", 2, **five_folds)
    return json.loads((five_folds["nnUNet_results"] / DATASET / "inference_information.json").read_text())


def test_find_best_configuration_ranks_both_networks_and_their_ensemble(best_configuration):
    models = [f"{trainer}__{PLANS}__{CONFIGURATION}" for trainer in (GLIMS, LATUPNET)]
    scores = best_configuration["all_results"]
    assert len(scores) == 3
    assert set(models) < set(scores)
    (ensemble,) = set(scores) - set(models)
    assert all(model in ensemble for model in models)
    assert all(0 <= score <= 1 for score in scores.values())
    assert best_configuration["best_model_or_ensemble"]["result_on_crossval_pre_pp"] == max(scores.values())


def test_instructions_name_our_trainers(best_configuration, five_folds):
    instructions = (five_folds["nnUNet_results"] / DATASET / "inference_instructions.txt").read_text()
    for model in best_configuration["best_model_or_ensemble"]["selected_model_or_models"]:
        assert f"-tr {model['trainer']}" in instructions
        assert f"-p {PLANS}" in instructions


def test_accumulated_results_hold_every_training_case_once(five_folds, tmp_path):
    command = ("nnUNetv2_accumulate_crossval_results", DATASET, "-c", CONFIGURATION, "-p", PLANS, "-tr", GLIMS)
    run_command(*command, "-o", tmp_path / "all", **five_folds)
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    labels = {path.name for path in (five_folds["nnUNet_raw"] / DATASET / "labelsTr").iterdir()}
    assert {path.name for path in (tmp_path / "all").glob("*.nii.gz")} == labels
    assert len(summary["metric_per_case"]) == len(labels)


def test_postprocessing_found_by_nnunet_only_takes_voxels_away(best_configuration, five_folds, prediction, tmp_path):
    best = best_configuration["best_model_or_ensemble"]
    command = ("nnUNetv2_apply_postprocessing", "-i", prediction, "-o", tmp_path, "-np", 1)
    run_command(*command, "-pp_pkl_file", best["postprocessing_file"], "-plans_json", best["some_plans_file"])
    before, after = segmentation(prediction), segmentation(tmp_path)
    assert (before > 0).any()
    assert before.shape == after.shape
    assert not (after[before == 0] > 0).any()


def test_an_ensemble_is_the_mean_of_two_networks(prediction, latupnet_prediction, tmp_path):
    run_command("nnUNetv2_ensemble", "-i", prediction, latupnet_prediction, "-o", tmp_path, "--save_npz", "-np", 1)
    mean = (probabilities(prediction) + probabilities(latupnet_prediction)) / 2
    np.testing.assert_allclose(probabilities(tmp_path), mean, atol=1e-3)
    assert segmentation(tmp_path).shape == segmentation(prediction).shape


def test_a_model_sent_as_zip_predicts_the_same_elsewhere(fold_0, prediction, tmp_path):
    archive = tmp_path / "model.zip"
    model = ("-d", DATASET, "-c", CONFIGURATION, "-tr", GLIMS, "-p", PLANS, "-f", "0")
    run_command("nnUNetv2_export_model_to_zip", *model, "-o", archive, **fold_0)
    elsewhere = {"nnUNet_raw": fold_0["nnUNet_raw"]}
    for name in ("preprocessed", "results"):
        elsewhere[f"nnUNet_{name}"] = tmp_path / name
        elsewhere[f"nnUNet_{name}"].mkdir()
    run_command("nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
    assert_same_prediction(predict(tmp_path / "prediction", **elsewhere), prediction)


def test_export_of_five_folds_takes_all_checkpoints(five_folds, tmp_path):
    archive = tmp_path / "model.zip"
    model = ("-d", DATASET, "-c", CONFIGURATION, "-tr", GLIMS, "-p", PLANS, "-f", *FOLDS)
    run_command("nnUNetv2_export_model_to_zip", *model, "-o", archive, **five_folds)
    with ZipFile(archive) as opened:
        names = opened.namelist()
    assert sum(name.endswith("checkpoint_final.pth") for name in names) == len(FOLDS)
