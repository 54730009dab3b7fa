"""Each step against nnU-Net's own code, with small networks that need no export."""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_glims.export.label_maps import label_map
from nnunet_glims.export.preprocessing import preprocess
from nnunet_glims.export.sliding_window import gaussian, predict_logits, windows
from nnunet_glims.nnunet.models import ModelFolder

from . import description, head, write_model_folder

ANISOTROPIC = {"spacing": [2.0, 0.7, 0.8]}
CASES = {
    "same grid": ({}, (1.0, 1.0, 1.0)),
    "finer": ({"spacing": [0.8, 0.9, 1.1]}, (1.0, 1.2, 1.0)),
    "thick slices": (ANISOTROPIC, (5.0, 1.0, 1.0)),
    "thick slices along x": ({"spacing": [1.0, 1.0, 3.0]}, (1.0, 1.1, 4.0)),
    "normalised inside": ({"use_mask_for_norm": [True, True], **ANISOTROPIC}, (5.0, 1.0, 1.0)),
    "CT": ({"normalization_schemes": ["CTNormalization", "RescaleTo01Normalization"]}, (1.0, 1.0, 1.0)),
    "none": ({"normalization_schemes": ["NoNormalization", "NoNormalization"]}, (1.0, 1.0, 1.0)),
}
TRANSPOSED = [(0, 1, 2), (2, 0, 1)]


def nnunet_preprocessed(folder, image, spacing):
    """(data, properties, plans manager, configuration) of nnU-Net."""
    model = ModelFolder(folder)
    manager = PlansManager(dict(model.plans))
    configuration = manager.get_configuration("3d_fullres")
    data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image, None, {"spacing": list(spacing)}, manager, configuration, dict(model.dataset_json)
    )
    return data, properties, manager, configuration


@pytest.mark.parametrize("transpose", TRANSPOSED, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_preprocessing_is_nnunets(tmp_path, case, transpose):
    settings, spacing = CASES[case]
    folder = write_model_folder(tmp_path, folds=(), transpose=transpose, **settings)
    expected, properties, *_ = nnunet_preprocessed(folder, head(), spacing)
    preprocessed = preprocess(head(), spacing, description(folder))
    assert preprocessed.data.shape == expected.shape
    np.testing.assert_allclose(preprocessed.data, expected, atol=2e-5)
    assert preprocessed.size == properties["shape_before_cropping"]
    assert [[part.start, part.stop] for part in preprocessed.crop] == properties["bbox_used_for_cropping"]


def test_rgb_and_an_empty_image(tmp_path):
    schemes = ["RGBTo01Normalization", "ZScoreNormalization"]
    folder = write_model_folder(tmp_path, folds=(), normalization_schemes=schemes, use_mask_for_norm=[False, True])
    rgb = np.abs(head()) * 30
    expected = nnunet_preprocessed(folder, rgb, (1.0, 1.0, 1.0))[0]
    model = description(folder)
    np.testing.assert_allclose(preprocess(rgb, (1.0, 1.0, 1.0), model).data, expected, atol=2e-5)
    empty = preprocess(np.zeros((2, 8, 9, 10)), (1.0, 1.0, 1.0), model)
    assert empty.data.shape == (2, 8, 9, 10)
    assert not empty.data.any()


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 40, 31), (100, 16, 23)])
def test_windows_and_their_weights_are_nnunets(size):
    patch = (16, 12, 15)
    steps = compute_steps_for_sliding_window(size, patch, 0.5)
    found = [tuple(part.start for part in window) for window in windows(size, patch, 0.5)]
    assert found == [(z, y, x) for z in steps[0] for y in steps[1] for x in steps[2]]
    weights = compute_gaussian(patch, 1 / 8, 10, device=torch.device("cpu")).float().numpy()
    np.testing.assert_array_equal(gaussian(patch, 1 / 8, 10), weights)


class Blur(torch.nn.Module):
    """Logits that change under mirroring."""

    def __init__(self, outputs: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv3d(2, outputs, 3, padding=1)

    def forward(self, x):
        return 3 * self.conv(x)


def as_network(module):
    def compute(patch):
        with torch.inference_mode():
            return module(torch.from_numpy(patch)).numpy()

    return compute


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize(("folds", "mirror"), [(1, False), (2, False), (2, True)])
def test_logits_and_labels_are_nnunets(tmp_path, monkeypatch, regions, folds, mirror):
    # nnU-Net adds up in half precision. At edges and corners of the cropped image its windows' weights have but a digit
    # there, or none. In float32 its logits are ours, so nothing else differs.
    monkeypatch.setattr(torch, "half", torch.float32)
    folder = write_model_folder(tmp_path, folds=(), regions=regions, transpose=(1, 0, 2), spacing=[2.0, 0.8, 0.9])
    image, spacing = head(), (1.0, 5.0, 1.1)
    data, properties, manager, configuration = nnunet_preprocessed(folder, image, spacing)
    model = description(folder, mirror_axes=(0, 2))
    modules = [Blur(model.outputs, seed) for seed in range(folds)]
    dataset_json = dict(ModelFolder(folder).dataset_json)
    with redirect_stdout(StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
        weights = [module.state_dict() for module in modules]
        network = Blur(model.outputs, 9)
        predictor.manual_initialization(network, manager, configuration, weights, dataset_json, "any", (0, 2))
        expected_logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
    preprocessed = preprocess(image, spacing, model)
    logits = predict_logits(preprocessed.data, [as_network(module) for module in modules], model, mirror)
    np.testing.assert_allclose(logits, expected_logits.numpy(), atol=1e-5)

    labels = manager.get_label_manager(dataset_json)
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, manager, configuration, labels, properties, num_threads_torch=1
    )
    found = label_map(logits, preprocessed, model)
    assert found.shape == image.shape[1:]
    assert len(np.unique(found)) == 3
    assert found.dtype == expected.dtype
    assert (found == expected).mean() > 0.9999  # here and there two outputs differ in the last digit


def test_what_two_folds_disagree_in_is_averaged(tmp_path):
    model = description(write_model_folder(tmp_path, folds=()))
    data = head((16, 16, 16))
    one, other = (as_network(Blur(model.outputs, seed)) for seed in (0, 1))
    both = predict_logits(data, [one, other], model, mirror=False)
    alone = [predict_logits(data, [network], model, mirror=False) for network in (one, other)]
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.1
