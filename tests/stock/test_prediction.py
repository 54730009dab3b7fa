import json

import nibabel
import numpy as np
import pytest

from nnunet_glims.nnunet.discovery import OPT_OUT, TRAINER_FOLDER, VARIABLE

from . import (
    DATASET,
    FOLDS,
    assert_same_prediction,
    predict,
    probabilities,
    segmentation,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def test_image(folders):
    return nibabel.load(min((folders["nnUNet_raw"] / DATASET / "imagesTs").iterdir()))


@pytest.fixture(scope="module")
def dataset_json(folders):
    return json.loads((folders["nnUNet_raw"] / DATASET / "dataset.json").read_text())


def test_a_prediction_lies_on_the_images_grid(prediction, test_image):
    (path,) = prediction.glob("*.nii.gz")
    predicted = nibabel.load(path)
    assert predicted.shape == test_image.shape
    np.testing.assert_allclose(predicted.affine, test_image.affine, atol=1e-5)


def test_labels_follow_from_the_probabilities_of_the_regions(prediction, test_image, dataset_json):
    regions = probabilities(prediction)
    order = dataset_json["regions_class_order"]
    assert regions.shape == (len(order), *test_image.shape[::-1])
    assert regions.std() > 0
    expected = np.zeros(test_image.shape, dtype=int)
    for label, region in zip(order, regions, strict=True):
        expected[region.T > 0.5] = label
    # Half-precision probabilities within rounding of 0.5 may go either way.
    clear = (np.abs(regions - 0.5) > 1e-3).all(axis=0).T
    assert clear.any()
    np.testing.assert_array_equal(segmentation(prediction)[clear], expected[clear])


def test_five_folds_are_averaged(five_folds, prediction, tmp_path):
    ensemble = predict(tmp_path, folds=FOLDS, **five_folds)
    assert probabilities(ensemble).shape == probabilities(prediction).shape
    assert np.abs(probabilities(ensemble) - probabilities(prediction)).max() > 1e-3


def test_prediction_with_the_variable_set_by_hand_is_the_same(fold_0, prediction, tmp_path):
    predict(tmp_path, **fold_0, **{VARIABLE: TRAINER_FOLDER, OPT_OUT: "1"})
    assert_same_prediction(tmp_path, prediction)


def test_latupnet_predicts_on_the_images_grid_too(latupnet_prediction, prediction, test_image):
    assert segmentation(latupnet_prediction).shape == test_image.shape
    assert probabilities(latupnet_prediction).std() > 0
    assert np.abs(probabilities(latupnet_prediction) - probabilities(prediction)).max() > 1e-3
