"""`nnunet-glims import-released` with parameters that were made up, in the form of the authors' checkpoints."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from nnunet_glims.cli import main
from nnunet_glims.nnunet.models import ModelFolder
from tests import golden
from tests.stock import child_environment
from tests.test_files import largest_file

HEADS = {"tumor_core": 0, "whole_tumor": 1, "enhancing_tumor": 2}
"""The authors' order."""


def run(*arguments, code=0):
    assert main(["import-released", *map(str, arguments)]) == code


@pytest.fixture(scope="session")
def parameters():
    return golden.parameters("glims")


@pytest.fixture(scope="session")
def checkpoint(parameters, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "model.pt"
    named = {f"module.backbone.{name}": value for name, value in parameters.items()}
    named["module.backbone.t4.layer.blocks.0.attn.relative_position_index"] = torch.zeros(4, dtype=torch.int64)
    torch.save({"epoch": 99, "best_acc": 0.9, "state_dict": named}, path)
    return path


@pytest.fixture(scope="session")
def model(checkpoint, tmp_path_factory):
    folder = (
        tmp_path_factory.mktemp("models") / "nnUNetTrainerGLIMSReleased__nnUNetPlans_glims_released_brats__3d_fullres"
    )
    run(checkpoint, folder)
    return folder


def test_the_folder_says_what_the_model_is(model):
    described = json.loads((model / "dataset.json").read_text())
    assert list(described["channel_names"].values()) == ["FLAIR", "T1ce", "T1", "T2"]
    assert described["regions_class_order"] == [2, 1, 3]
    folder = ModelFolder(model)
    configuration = folder.plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [96, 96, 96] and configuration["spacing"] == [1, 1, 1]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"] * 4
    assert configuration["use_mask_for_norm"] == [True] * 4
    assert configuration["architecture"]["arch_kwargs"]["feature_size"] == 12
    assert configuration["architecture"]["arch_kwargs"]["released"] is True
    assert configuration["training"]["precision"] == "fp32"
    assert sorted(path.name for path in model.iterdir()) == ["dataset.json", "fold_0", "plans.json"]


def predictor(model, folds=(0,)):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(model), folds)
    return made


def test_nnunets_network_computes_the_released_models_values(model, capsys):
    made = predictor(model)
    assert made.allowed_mirroring_axes is None
    regions = [{1, 2, 3}, {1, 3}, {3}]
    order = [HEADS[name] for name in ("whole_tumor", "tumor_core", "enhancing_tumor")]
    foreground = made.label_manager.foreground_regions
    assert [set(np.atleast_1d(region)) for region in foreground] == regions
    x = torch.from_numpy(golden.volume("glims-input-4", (1, 4, 96, 96, 96)))
    with torch.no_grad():
        output = made.network.eval()(x)
    as_released = output[:, [order.index(head) for head in range(3)]]
    index, value, std = golden.values("glims", "F12_4to3_head0")
    error = np.abs(as_released.flatten()[torch.from_numpy(index)].numpy() - value).max() / std
    assert error < 5e-3


def test_painting_leaves_each_label_where_its_regions_are(model):
    manager = predictor(model).label_manager
    logits = np.full((3, 1, 1, 4), -9.0, np.float32)  # background, ED, NCR, ET
    logits[0, ..., 1:] = logits[1, ..., 2:] = logits[2, ..., 3:] = 9
    assert np.asarray(manager.convert_logits_to_segmentation(logits)).ravel().tolist() == [0, 2, 1, 3]


def test_a_bare_state_dict_does_too_and_further_folds_join(parameters, model, tmp_path):
    torch.save(parameters, tmp_path / "bare.pt")
    folder = tmp_path / "model"
    run(tmp_path / "bare.pt", folder)
    run(tmp_path / "bare.pt", folder, "--fold", 3)
    weights = [
        torch.load(path / "checkpoint_final.pth", weights_only=False)["network_weights"]
        for path in (model / "fold_0", folder / "fold_0", folder / "fold_3")
    ]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])
    assert len(predictor(folder, (0, 3)).list_of_parameters) == 2


def test_what_is_there_stays(checkpoint, model, tmp_path, capsys):
    before = (model / "fold_0/checkpoint_final.pth").read_bytes()
    run(checkpoint, model, code=2)
    assert "has fold_0 already" in capsys.readouterr().err
    assert (model / "fold_0/checkpoint_final.pth").read_bytes() == before
    (tmp_path / "mine").mkdir()
    run(checkpoint, tmp_path / "mine", code=2)
    assert "is no folder of such weights" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_with_code_in_it_is_refused(parameters, tmp_path, capsys):
    torch.save({"state_dict": parameters, "hyper_parameters": Trap(tmp_path / "trapped")}, tmp_path / "trap.pt")
    run(tmp_path / "trap.pt", tmp_path / "model", code=2)
    message = capsys.readouterr().err
    assert "holds more than tensors" in message and "weights_only=False)['state_dict']" in message
    assert not (tmp_path / "trapped").exists()
    assert not (tmp_path / "model").exists()


def without(parameters, name):
    return {key: value for key, value in parameters.items() if key != name}


WRONG = {
    "text": (lambda p: None, "no PyTorch checkpoint"),
    "a list": (lambda p: [1, 2], "holds neither a state dict"),
    "another network": (lambda p: {"conv.weight": torch.zeros(3)}, "has 0 parameters named stem.conv.weight"),
    "a parameter less": (lambda p: without(p, "out2.conv.conv.bias"), "out2.conv.conv.bias"),
    "one channel": (lambda p: {**p, "stem.conv.weight": p["stem.conv.weight"][:, :1]}, "made for 1 channels"),
    "a wrong shape": (lambda p: {**p, "csab1.ChannelGate.mlp.1.bias": torch.zeros(5)}, "csab1.ChannelGate.mlp.1.bias"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_files_are_named_and_nothing_is_written(wrong, parameters, tmp_path, capsys):
    make, message = WRONG[wrong]
    content = make(parameters)
    if content is None:
        (tmp_path / "weights.pt").write_text("no checkpoint")
    else:
        torch.save(content, tmp_path / "weights.pt")
    run(tmp_path / "weights.pt", tmp_path / "model", code=1 if content is None else 2)
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def changed_byte(content):
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


DAMAGES = {
    "empty": (lambda content: b"", "this file is empty"),
    "cut": (lambda content: content[: len(content) // 2], "damaged or cut off"),
    "a changed byte": (changed_byte, "its checksums do not fit"),
    "zeros": (lambda content: bytes(1000), "no PyTorch checkpoint, or it is damaged"),
    "an image": (lambda content: b"\x89PNG\r\n\x1a\n" + bytes(100), "no PyTorch checkpoint, or it is damaged"),
    "JSON": (lambda content: b'{"state_dict": {}}', "no PyTorch checkpoint, or it is damaged"),
    "another zip": (lambda content: b"PK\x05\x06" + bytes(18), "no PyTorch checkpoint, or it is damaged"),
    "a list, pickled": (lambda content: pickle.dumps([1, 2]), "no PyTorch checkpoint, or it is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_and_nothing_is_written(damage, checkpoint, tmp_path, capsys):
    change, message = DAMAGES[damage]
    (tmp_path / "weights.pt").write_bytes(change(checkpoint.read_bytes()))
    run(tmp_path / "weights.pt", tmp_path / "model", code=1)
    error = capsys.readouterr().err
    assert f"{tmp_path / 'weights.pt'}: " in error and message in error
    assert "Copy the file again" in error
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_weights_that_are_not_finite_are_refused(parameters, tmp_path, capsys):
    name = "stem.conv.weight"
    torch.save({**parameters, name: parameters[name] * float("nan")}, tmp_path / "weights.pt")
    run(tmp_path / "weights.pt", tmp_path / "model", code=1)
    assert f"{tmp_path / 'weights.pt'}: the weights are not finite" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_folder_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "weights.pt").mkdir()
    run(tmp_path / "weights.pt", tmp_path / "model", code=2)
    assert f"{tmp_path / 'weights.pt'}: this is a folder, not a file" in capsys.readouterr().err


def test_code_in_the_old_format_is_refused(parameters, tmp_path, capsys):
    content = {"state_dict": parameters, "hyper_parameters": Trap(tmp_path / "trapped")}
    torch.save(content, tmp_path / "trap.pt", _use_new_zipfile_serialization=False)
    run(tmp_path / "trap.pt", tmp_path / "model", code=2)
    assert "holds more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "trapped").exists()


def test_a_folder_below_a_file_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    run(checkpoint, tmp_path / "file/model", code=2)
    assert f"{tmp_path / 'file'}: this is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_no_half_model(checkpoint, tmp_path, capsys):
    with largest_file(10_000):
        run(checkpoint, tmp_path / "model", code=1)
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_file(tmp_path, capsys):
    run(tmp_path / "weights.pt", tmp_path / "model", code=2)
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_stock_nnunet_predicts_with_it(model, tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, -1, 1, 1])
    for channel in range(4):
        voxels = np.zeros((100, 96, 90), np.float32)
        voxels[10:90, 10:90, 10:80] = rng.normal(100, 20, (80, 80, 70))
        (tmp_path / "images").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / f"images/case_{channel:04d}.nii.gz")
    command = ["nnUNetv2_predict_from_modelfolder", "-i", tmp_path / "images", "-o", tmp_path / "out", "-m", model]
    options = ["-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--save_probabilities"]
    command = [str(Path(sys.executable).with_name(command[0])), *map(str, command[1:]), *options]
    finished = subprocess.run(command, env=child_environment({}), capture_output=True, timeout=500, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    predicted = nibabel.load(tmp_path / "out/case.nii.gz")
    assert predicted.shape == (100, 96, 90)
    np.testing.assert_allclose(predicted.affine, affine)
    probabilities = np.load(tmp_path / "out/case.npz")["probabilities"]
    assert probabilities.shape == (3, 90, 96, 100)
    assert probabilities.std() > 0.01
    # What nnU-Net saves, painted at one half by our rules, is what nnU-Net painted.
    named = {"whole_tumor": ([1, 2, 3], 2), "tumor_core": ([1, 3], 1), "enhancing_tumor": ([3], 3)}
    regions = [{"name": name, "labels": labels, "paint": paint} for name, (labels, paint) in named.items()]
    (tmp_path / "half.json").write_text(json.dumps({"regions": regions}))
    for preset, done in ((tmp_path / "half.json", "half"), ("glims_brats2023", "challenge")):
        assert main(["postprocess", str(tmp_path / "out"), "-o", str(tmp_path / done), "--preset", str(preset)]) == 0
    labels, half = (np.asanyarray(nibabel.load(tmp_path / f"{name}/case.nii.gz").dataobj) for name in ("out", "half"))
    assert set(np.unique(labels)) > {0}
    assert np.array_equal(labels, half)
    np.testing.assert_allclose(nibabel.load(tmp_path / "half/case.nii.gz").affine, affine)
    assert (tmp_path / "challenge/plans.json").exists()
