import json

import nibabel
import numpy as np
import pytest

from . import (
    CONFIGURATION,
    DATASET,
    GLIMS,
    LATUPNET,
    PLANS,
    assert_same_prediction,
    call,
    model_folder,
    predict,
    probabilities,
    segmentation,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def best_configuration(five_folds):
    """What nnUNetv2_find_best_configuration says about GLIMS, LATUPNet and both together."""
    command = ("nnUNetv2_find_best_configuration", DATASET, "-c", CONFIGURATION, "-p", PLANS, "-tr", GLIMS, LATUPNET)
    call(*command, "-np", 1, **five_folds)
    return json.loads((five_folds["nnUNet_results"] / DATASET / "inference_information.json").read_text())


def mean_dice(model, folders):
    """Mean Dice of the validation cases of all folds: of the cases of a region first, then of the regions."""
    raw = folders["nnUNet_raw"] / DATASET
    regions = list(json.loads((raw / "dataset.json").read_text())["labels"].values())[1:]
    dice = []
    for path in model.glob("fold_*/validation/*.nii.gz"):
        found, truth = (np.asarray(nibabel.load(file).dataobj) for file in (path, raw / "labelsTr" / path.name))
        pairs = [(np.isin(found, region), np.isin(truth, region)) for region in regions]
        dice.append([2 * (one & other).sum() / (one.sum() + other.sum()) for one, other in pairs])
    assert len(dice) == 10
    return np.mean(np.nanmean(dice, axis=0))


def test_find_best_configuration_ranks_both_networks_and_their_ensemble(best_configuration, five_folds):
    models = [f"{trainer}__{PLANS}__{CONFIGURATION}" for trainer in (GLIMS, LATUPNET)]
    scores = best_configuration["all_results"]
    assert len(scores) == 3
    assert set(models) < set(scores)
    (ensemble,) = set(scores) - set(models)
    assert all(model in ensemble for model in models)
    for trainer, model in zip((GLIMS, LATUPNET), models, strict=True):
        assert scores[model] == pytest.approx(mean_dice(model_folder(five_folds, trainer), five_folds), abs=1e-6)
    assert best_configuration["best_model_or_ensemble"]["result_on_crossval_pre_pp"] == max(scores.values())


def test_instructions_name_our_trainers(best_configuration, five_folds):
    instructions = (five_folds["nnUNet_results"] / DATASET / "inference_instructions.txt").read_text()
    for model in best_configuration["best_model_or_ensemble"]["selected_model_or_models"]:
        assert f"-tr {model['trainer']}" in instructions
        assert f"-p {PLANS}" in instructions


def test_an_ensemble_is_the_mean_of_two_networks(prediction, latupnet_prediction, tmp_path):
    call("nnUNetv2_ensemble", "-i", prediction, latupnet_prediction, "-o", tmp_path, "--save_npz", "-np", 1)
    mean = (probabilities(prediction) + probabilities(latupnet_prediction)) / 2
    np.testing.assert_allclose(probabilities(tmp_path), mean, atol=1e-3)
    assert segmentation(tmp_path).shape == segmentation(prediction).shape


def test_a_model_sent_as_zip_predicts_the_same_elsewhere(fold_0, prediction, tmp_path):
    archive = tmp_path / "model.zip"
    model = ("-d", DATASET, "-c", CONFIGURATION, "-tr", GLIMS, "-p", PLANS, "-f", "0")
    call("nnUNetv2_export_model_to_zip", *model, "-o", archive, **fold_0)
    elsewhere = {"nnUNet_raw": fold_0["nnUNet_raw"]}
    for name in ("preprocessed", "results"):
        elsewhere[f"nnUNet_{name}"] = tmp_path / name
        elsewhere[f"nnUNet_{name}"].mkdir()
    call("nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
    assert_same_prediction(predict(tmp_path / "prediction", **elsewhere), prediction)
