"""Model folders whose checkpoints, plans.json or dataset.json are missing, damaged or of something else."""

import json
import random
import shutil
import zipfile

import pytest
import torch

from nnunet_glims.cli import main
from nnunet_glims.errors import ProcessingError
from nnunet_glims.nnunet.checkpoints import load_checkpoint
from tests.export import head, write_case, write_model_folder
from tests.test_files import largest_file

CHECKPOINT = "fold_0/checkpoint_final.pth"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_case(root / "images", "one", head())
    return write_model_folder(root)


@pytest.fixture
def model(whole, tmp_path, monkeypatch):
    """A model folder that a test may damage."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}", raising=False)
    shutil.copytree(whole.parent, tmp_path / "work")
    return tmp_path / "work" / whole.name


def refused(model, capsys, *options, command="export", code=1):
    out = model.parent / "out"
    if command == "export":
        arguments = [str(model), str(out), "--format", "torchscript"]
    else:
        arguments = [str(model), str(model.parent / "images"), "-o", str(out), "-device", "cpu"]
    assert main([command, *arguments, *options]) == code
    error = capsys.readouterr().err
    assert not out.exists()
    assert "--debug" not in error
    return error


def test_no_changed_byte_of_a_checkpoint_is_loaded_as_other_weights(model):
    """torch itself loads most of these files."""
    path = model / CHECKPOINT
    content = path.read_bytes()
    before = load_checkpoint(path)["network_weights"]
    refusals = 0
    for seed in range(50):
        damaged = bytearray(content)
        damaged[random.Random(seed).randrange(len(content))] ^= 1 << seed % 8
        path.write_bytes(damaged)
        try:
            after = load_checkpoint(path)["network_weights"]
        except ProcessingError:
            refusals += 1
        else:
            assert all(torch.equal(before[name], after[name]) for name in before)
    assert refusals > 10


def test_changed_weights_are_refused_by_the_command(model, capsys):
    path = model / CHECKPOINT
    with zipfile.ZipFile(path) as archive:
        weights = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[weights.header_offset + weights.file_size // 2 + 100] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=False)["network_weights"], "torch does not notice"
    assert f"{path}: this checkpoint is damaged" in refused(model, capsys)


DAMAGES = {
    "empty": (lambda content: b"", "this file is empty"),
    "text": (lambda content: b"no checkpoint\n", "no PyTorch checkpoint, or it is damaged"),
    "cut": (lambda content: content[: len(content) // 2], "damaged or cut off"),
    "zeros at the end": (lambda content: content[:-2000] + bytes(2000), "damaged"),
}


@pytest.mark.parametrize("command", ["export", "explain"])
@pytest.mark.parametrize("trust", [(), ("--trust",)], ids=["", "trusted"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_named_with_a_way_out(damage, trust, command, model, capsys):
    change, message = DAMAGES[damage]
    (model / "fold_0/checkpoint_best.pth").write_bytes(b"")
    (model / CHECKPOINT).write_bytes(change((model / CHECKPOINT).read_bytes()))
    error = refused(model, capsys, *trust, command=command)
    assert f"{model / CHECKPOINT}: " in error and message in error
    assert "--checkpoint checkpoint_best.pth" in error


FOREIGN = {
    "a list": [1, 2],
    "a number": 3,
    "a state dict": {"conv.weight": torch.zeros(3)},
    "no name of a trainer": {"network_weights": {}},
    "no weights": {"network_weights": None, "trainer_name": "nnUNetTrainer"},
    "weights that are numbers": {"network_weights": {"w": 1}, "trainer_name": "nnUNetTrainer"},
    "weights without names": {"network_weights": {1: torch.zeros(3)}, "trainer_name": "nnUNetTrainer"},
    "axes": {"network_weights": {}, "trainer_name": "x", "inference_allowed_mirroring_axes": "012"},
    "four axes": {"network_weights": {}, "trainer_name": "x", "inference_allowed_mirroring_axes": (0, 3)},
    "lists as axes": {"network_weights": {}, "trainer_name": "x", "inference_allowed_mirroring_axes": ([0],)},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_other_files_of_torch_are_no_checkpoints(what, model, capsys):
    torch.save(FOREIGN[what], model / CHECKPOINT)
    assert f"{model / CHECKPOINT}: " in refused(model, capsys)


@pytest.mark.parametrize("axes", [(0, 0), [True], (0.0, 1), (torch.tensor(0),), [0, 1, 2, 0]], ids=str)
@pytest.mark.parametrize("command", ["export", "explain"])
def test_axes_to_mirror_that_are_none_are_the_checkpoints(command, axes, model, capsys):
    path = model / CHECKPOINT
    content = torch.load(path, weights_only=False)
    torch.save({**content, "inference_allowed_mirroring_axes": axes}, path)
    error = refused(model, capsys, command=command)
    assert f"{path}: inference_allowed_mirroring_axes: {axes} are no axes" in error and "plans.json" not in error


def test_a_zip_of_something_else_is_no_checkpoint(model, capsys):
    with zipfile.ZipFile(model / CHECKPOINT, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "no PyTorch checkpoint" in refused(model, capsys)


@pytest.mark.parametrize("command", ["export", "explain"])
def test_checkpoints_of_other_names_are_listed(command, model, capsys):
    (model / CHECKPOINT).rename(model / "fold_0/checkpoint_best.pth")
    shutil.copy(model / "fold_0/checkpoint_best.pth", model / "fold_0/checkpoint_latest.pth")
    error = refused(model, capsys, command=command, code=2)
    assert "no checkpoint_final.pth" in error or "a checkpoint_final.pth" in error
    assert "fold 0 has checkpoint_best.pth, checkpoint_latest.pth" in error
    assert "--checkpoint" in error and "train one first" not in error
    error = refused(model, capsys, "--checkpoint", "checkpoint_bset.pth", command=command, code=2)
    assert "checkpoint_bset.pth; fold 0 has checkpoint_best.pth, checkpoint_latest.pth" in error


def test_where_there_is_none_the_way_out_is_training(model, capsys):
    (model / CHECKPOINT).unlink()
    assert "there is no checkpoint at all: train one first" in refused(model, capsys, code=2)
    assert "train one first" in refused(model, capsys, "--folds", "0", code=2)


def test_a_full_disk_leaves_no_export(model, capsys):
    with largest_file(20_000):
        assert "cannot be written" in refused(model, capsys)


@pytest.mark.parametrize("folds", ["0,0", ",", "", "0,"])
def test_lists_of_folds_that_are_none_are_refused(folds, model, capsys):
    assert "fold" in refused(model, capsys, "--folds", folds, code=2)


def test_a_checkpoint_lies_in_the_folder_of_its_fold(model, capsys):
    for name in ("../checkpoint_final.pth", str(model / CHECKPOINT), "", "*"):
        assert "checkpoint" in refused(model, capsys, "--checkpoint", name, code=2)


WRONG_PLANS = {
    "empty": "",
    "text": "plans",
    "cut": None,
    "a list": [],
    "a number": 7,
    "null": None,
    "no configurations": {"dataset_name": "Dataset001_A"},
    "configurations that are a list": {"configurations": []},
}


@pytest.mark.parametrize("command", ["export", "explain"])
@pytest.mark.parametrize("what", WRONG_PLANS)
@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_files_that_are_no_plans_and_no_dataset_json_are_named(name, what, command, model, capsys):
    path, content = model / name, WRONG_PLANS[what]
    text = path.read_text()[:-40] if what == "cut" else content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    assert main([command, str(model), str(model.parent / "x"), *(["-o", "y"] if command == "explain" else [])]) in (
        1,
        2,
    )
    error = capsys.readouterr().err
    assert str(path) in error and "--debug" not in error


WRONG = {
    "patch_size": [[10**6] * 3, [], [16], [16, 16, 0], [16, 16, -1], [16.5, 16, 16], "16", None, [16] * 4],
    "spacing": [[], [0, 1, 1], [1, 1, -1], "1", None, ["a", 1, 1], [1, 1]],
    "normalization_schemes": [[], ["ZScoreNormalization"], "ZScoreNormalization", None, [1, 2]],
    "use_mask_for_norm": [[], [True], None, "no"],
    "preprocessor_name": [None, 3],
    "resampling_fn_data": [None, 3, []],
    "resampling_fn_data_kwargs": [None, [], "x", {"order": "three"}, {"order": 99}],
    "resampling_fn_probabilities_kwargs": [None, []],
    "batch_size": [0, "two", None],
    "architecture": [
        None,
        [],
        {},
        {"network_class_name": "torch.nn.Conv3d"},
        {"network_class_name": None, "arch_kwargs": {}, "_kw_requires_import": []},
        {"network_class_name": "torch.nn.Conv3d", "arch_kwargs": {}, "_kw_requires_import": []},
        {"network_class_name": "torch.nn.Conv3d", "arch_kwargs": {}, "_kw_requires_import": ["absent"]},
        {"network_class_name": "torch.nn.Conv3d", "arch_kwargs": {}, "_kw_requires_import": "norm_op"},
    ],
    "inherits_from": ["nothing", "3d_fullres", 3, []],
    "previous_stage": [3],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=str)
def test_wrong_values_in_plans_are_named(key, value, model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"][key] = value
    (model / "plans.json").write_text(json.dumps(plans))
    code = main(["export", str(model), str(model.parent / "out"), "--format", "torchscript"])
    error = capsys.readouterr().err
    assert code in (1, 2), error
    assert str(model / "plans.json") in error or "cannot be exported" in error
    assert "--debug" not in error and not (model.parent / "out").exists()


def test_a_patch_that_no_memory_holds_is_refused(model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [10**6] * 3
    (model / "plans.json").write_text(json.dumps(plans))
    assert "patch_size: it has 1,000,000,000,000,000,000 voxels" in refused(model, capsys, command="explain")


def test_a_spacing_at_which_no_image_fits_into_memory_is_refused(model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1e-9, 1, 1]
    (model / "plans.json").write_text(json.dumps(plans))
    error = refused(model, capsys, command="explain")
    assert "one_0000.nii.gz: nnU-Net cannot preprocess this image to 1e-09×1×1 mm" in error


@pytest.mark.parametrize("kwargs", [{"ordre": 3}, {"order": "three"}, {"order": 9}, {"force_separate_z": 1}], ids=str)
def test_arguments_of_resampling_are_looked_at(kwargs, model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["resampling_fn_probabilities_kwargs"] = kwargs
    (model / "plans.json").write_text(json.dumps(plans))
    error = refused(model, capsys, command="explain")
    assert str(model / "plans.json") in error and "resampling_fn_probabilities_kwargs" in error


@pytest.mark.parametrize("command", ["export", "explain"])
def test_networks_that_cannot_compute_their_patch_are_named(command, model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][0] = [[], 1, 1]
    (model / "plans.json").write_text(json.dumps(plans))
    error = refused(model, capsys, command=command, code=2)
    assert f"{model / CHECKPOINT}: the network cannot compute the plans' patch of 16×16×16 voxels" in error


def test_a_patch_of_other_dimensions_than_the_network_is_refused(model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16]
    (model / "plans.json").write_text(json.dumps(plans))
    assert "the network cannot compute the plans' patch of 16×16 voxels" in refused(
        model, capsys, command="explain", code=2
    )


def test_arguments_that_build_no_network_are_named(model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_stages"] = "three"
    (model / "plans.json").write_text(json.dumps(plans))
    assert f"{model / 'plans.json'}: configurations.3d_fullres.architecture: " in refused(model, capsys)


@pytest.mark.parametrize("key", ["patch_size", "spacing", "normalization_schemes", "use_mask_for_norm", "architecture"])
def test_missing_keys_of_plans_are_named(key, model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    del plans["configurations"]["3d_fullres"][key]
    (model / "plans.json").write_text(json.dumps(plans))
    error = refused(model, capsys)
    assert f"{model / 'plans.json'}: configurations.3d_fullres" in error


@pytest.mark.parametrize("key", ["plans_name", "image_reader_writer", "transpose_forward", "transpose_backward"])
@pytest.mark.parametrize("value", [None, 3, [0, 1], "absent"])
def test_wrong_values_beside_the_configurations_are_named(key, value, model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    if value == "absent":
        del plans[key]
    else:
        plans[key] = value
    (model / "plans.json").write_text(json.dumps(plans))
    error = refused(model, capsys)
    assert str(model / "plans.json") in error and f" {key}: " in error


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"background": 0}},
        {"labels": {"one": 1}},
        {"labels": {"background": 1, "one": 2}},
        {"labels": {"background": 0, "one": [1, 2], "two": [2]}},
        {"labels": {"background": 0, "one": 1, "ignore": 1}},
        {"labels": {"background": 0, "one": 1, "two": 3}},
        {"labels": {"background": 0, "one": 1, "two": 1000000}},
        {"channel_names": {"0": "a"}},
        {"channel_names": {"1": "a", "2": "b"}},
        {"channel_names": {"a": "a", "b": "b"}},
        {"channel_names": {}},
        {"file_ending": "/../x.nii.gz"},
    ],
    ids=str,
)
def test_a_dataset_json_that_does_not_fit_the_model_is_refused(change, model, capsys):
    described = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**described, **change}))
    code = main(["export", str(model), str(model.parent / "out"), "--format", "torchscript"])
    error = capsys.readouterr().err
    assert code in (1, 2), error
    assert str(model) in error and "--debug" not in error


@pytest.mark.parametrize("name", ["nnUNetTrainerNobody", "np", "nnUNetTrainer x", "join"])
def test_trainers_that_are_none_are_named(name, model, capsys):
    other = model.rename(model.with_name(f"{name}__nnUNetPlans__3d_fullres"))
    assert f"finds no trainer {name}" in refused(other, capsys, code=2)


def test_a_folder_of_another_configuration_says_which_there_are(model, capsys):
    other = model.rename(model.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres"))
    error = refused(other, capsys)
    assert "there is no '3d_lowres', only 3d_fullres" in error
