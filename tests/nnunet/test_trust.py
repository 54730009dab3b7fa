"""Model folders whose plans name code: only networks and layers of some packages are imported and called."""

import dataclasses
import json
import shutil
import sys

import nibabel
import numpy as np
import pytest

from nnunet_glims.cli import main
from nnunet_glims.doctor import network
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.networks import BUILT_IN
from nnunet_glims.nnunet.trust import NotTrustedError, check_network_class
from tests.export import PLAIN, head, write_case, write_model_folder
from tests.preprocessed import DATASET, dataset_json, make_plans

HOSTILE = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("imported").touch()

def function(**arguments):
    Path(__file__).with_name("called").touch()

class Layer(nn.Conv3d):
    pass

class Network(nn.Conv3d):
    def __init__(self, input_channels, num_classes, deep_supervision, **arguments):
        super().__init__(input_channels, num_classes, 1)
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A folder with a module that leaves a file where it is imported, and another where its function is called."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "hostile_module.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("hostile_module", None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model folder of nnU-Net's own U-Net with an evaluation, and an image of two channels."""
    root = tmp_path_factory.mktemp("models")
    folder = write_model_folder(root)
    write_case(root / "images", "one", head())
    for name in ("truth", "predicted"):
        (root / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), root / f"{name}/one.nii.gz")
    (root / "predicted/dataset.json").write_text(json.dumps(dataset_json()))
    assert main(["evaluate", str(root / "truth"), str(root / "predicted"), "--workers", "1"]) == 0
    return folder


@pytest.fixture
def model(whole, tmp_path, monkeypatch):
    """A copy that a test may change."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    shutil.copytree(whole.parent, tmp_path / "work")
    return tmp_path / "work" / whole.name


def change(model, **settings):
    """Change the configuration in the plans."""
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] |= settings
    (model / "plans.json").write_text(json.dumps(plans))


def call(command, model, *options):
    """Run a command on the model folder; return its exit code."""
    out = model.parent / f"of_{command}"
    if command == "leaderboard":
        board = {"entries": [{"name": "A", "path": "predicted", "model": model.name}]}
        (model.parent / "board.yaml").write_text(json.dumps(board))
        arguments = [str(model.parent / "board.yaml"), "-o", str(out), "--cases", "0"]
    elif command == "explain":
        arguments = [str(model), str(model.parent / "images"), "-o", str(out), "-device", "cpu"]
    else:
        arguments = [str(model), str(out), "--format", "torchscript"]
    code = main([command, *arguments, *options])
    assert code == 0 or not out.exists(), "a refusal leaves nothing"
    return code


def architecture(network=None, **arguments):
    """The U-Net's architecture, with another class or other arguments."""
    kwargs = {**PLAIN["arch_kwargs"], **arguments}
    return {**PLAIN, "network_class_name": network or PLAIN["network_class_name"], "arch_kwargs": kwargs}


NAMES = {
    "function": "hostile_module.function",
    "network": "hostile_module.Network",
    "of the standard library": "logging.basicConfig",
    "function of torch": "torch.nn.functional.conv3d",
    "reached through a layer": "torch.nn.modules.module.torch.load",
    "network from elsewhere through a layer": "torch.nn.modules.module.torch.jit.ScriptModule",
    "our command": "nnunet_glims.__main__.main",
    "module of ours": "nnunet_glims.cli.main",
    "nothing, with a function of that name": "dynamic_network_architectures.nowhere.get_matching_convtransp",
    "no path": "os; x",
}


@pytest.mark.parametrize("place", ["network_class_name", "norm_op"])
@pytest.mark.parametrize("name", NAMES)
def test_other_networks_and_layers_are_not_imported(name, place, model, hostile, capsys):
    given = architecture(NAMES[name]) if place == "network_class_name" else architecture(norm_op=NAMES[name])
    change(model, architecture=given)
    assert call("export", model) == 2
    error = capsys.readouterr().err
    assert f"{model / 'plans.json'}: configurations.3d_fullres.architecture." in error
    assert place in error and repr(NAMES[name]) in error and "--trust" in error
    assert [path.name for path in hostile.iterdir()] == ["hostile_module.py"]


@pytest.mark.parametrize("command", ["leaderboard", "explain", "export"])
def test_every_command_refuses_them_and_takes_what_is_trusted(command, model, hostile, capsys):
    if command == "leaderboard":
        change(model, architecture=architecture("hostile_module.function"))
        assert call(command, model) == 2
        assert "'hostile_module.function' is no network" in capsys.readouterr().err
    change(model, architecture=architecture("hostile_module.Network", norm_op="hostile_module.Layer"))
    assert call(command, model) == 2
    assert "--trust" in capsys.readouterr().err
    assert [path.name for path in hostile.iterdir()] == ["hostile_module.py"]
    code = call(command, model, "--trust")
    if command == "leaderboard":
        assert code == 0
        assert "could not be read or built" not in (model.parent / "of_leaderboard/leaderboard.html").read_text()
    else:  # the weights are those of another network, which shows that it was built
        assert code != 0
        assert "these weights are not of the network" in capsys.readouterr().err
    assert (hostile / "imported").exists()


def test_an_argument_of_any_name_may_be_one_that_is_imported(model, hostile, capsys):
    given = architecture(conv_bias="hostile_module.function")
    given["_kw_requires_import"] = [*PLAIN["_kw_requires_import"], "conv_bias"]
    change(model, architecture=given)
    assert call("export", model) == 2
    assert "arch_kwargs.conv_bias: 'hostile_module.function'" in capsys.readouterr().err
    assert not (hostile / "imported").exists()


def test_inherited_configurations_are_looked_at(model, hostile, capsys):
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["parent"] = {"architecture": architecture("hostile_module.Network")}
    del plans["configurations"]["3d_fullres"]["architecture"]
    plans["configurations"]["3d_fullres"]["inherits_from"] = "parent"
    (model / "plans.json").write_text(json.dumps(plans))
    assert call("export", model) == 2
    assert "hostile_module.Network" in capsys.readouterr().err
    assert not (hostile / "imported").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preprocessor_name", "maybe_mkdir_p"),
        ("normalization_schemes", ["abstractmethod", "ZScoreNormalization"]),
        ("resampling_fn_probabilities", "deepcopy"),
        ("resampling_fn_seg", "resize_segmentation"),
    ],
)
def test_what_prepares_images_is_nnunets(key, value, model, capsys):
    change(model, **{key: value})
    assert call("explain", model) == 2
    name = value if isinstance(value, str) else value[0]
    assert f"{model / 'plans.json'}: {key}: {name!r} is no " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["leaderboard", "explain", "export"])
def test_the_label_manager_is_nnunets(command, model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps({**plans, "label_manager": "join"}))
    assert call(command, model) == 2
    assert "'join'" in capsys.readouterr().err


def test_packages_that_register_a_network_are_admitted(model, hostile, monkeypatch):
    other = dataclasses.replace(BUILT_IN[0], name="Other", path="hostile_module.Network", trainer="x", variants={})
    monkeypatch.setattr("nnunet_glims.nnunet.trust.networks", lambda: (*BUILT_IN, other))
    change(model, architecture=architecture("hostile_module.Network"))
    assert call("leaderboard", model) == 0
    assert "could not be read or built" not in (model.parent / "of_leaderboard/leaderboard.html").read_text()


def test_comparisons_time_no_other_networks(model, hostile, tmp_path, capsys):
    folder = tmp_path / "preprocessed" / DATASET
    folder.mkdir()
    plans = make_plans(patch_size=(8, 8, 8))
    plans["configurations"]["3d_fullres"] |= {"architecture": architecture("hostile_module.Network"), "batch_size": 1}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json()))
    asked = {"datasets": [777], "entries": [{"name": "A", "trainer": "nnUNetTrainer"}], "folds": [0], "device": "cpu"}
    path = tmp_path / "asked.yaml"
    path.write_text(json.dumps(asked))
    assert main(["compare", "plan", str(path), "--timing"]) == 2
    assert "hostile_module.Network" in capsys.readouterr().err
    assert not (hostile / "imported").exists()
    assert main(["compare", "plan", str(path), "--timing", "--trust"]) == 0
    assert "s a step here" in capsys.readouterr().out
    reports = [Experiment(path, trust).jobs["report_D777"] for trust in (False, True)]
    assert [command.count("--trust") for job in reports for command in job.commands()] == [0, 1]
    assert reports[0].ingredients(reports[0].commands()) == reports[1].ingredients(reports[1].commands())


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "Dataset001_A/../../x", "", None, 7])
def test_the_data_set_of_the_plans_is_a_name(name, model, capsys):
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps({**plans, "dataset_name": name}))
    assert call("export", model) == 1
    error = capsys.readouterr().err
    assert str(model / "plans.json") in error and "dataset_name: " in error


@pytest.mark.parametrize("identifier", ["../../elsewhere", "..", "/elsewhere", 7])
def test_the_folder_of_preprocessed_data_lies_in_that_of_the_data_set(identifier, model, capsys):
    change(model, data_identifier=identifier)
    assert call("export", model) == 1
    assert "data_identifier: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet",  # nnU-Net finds where it is today
        "nnunet_glims.architectures.GLIMS",
        "nnunet_glims.architectures.glims.GLIMS",
        "torch.nn.LeakyReLU",
        "torch.nn.modules.instancenorm.InstanceNorm3d",
        "torch.nn.modules.dropout.Dropout3d",
    ],
)
def test_what_nnunets_plans_name_is_admitted(path):
    check_network_class(path, "plans.json")


def test_doctor_calls_no_other_label_manager(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(dataset_json()))
    plans = {**make_plans(), "label_manager": "join"}
    with pytest.raises(NotTrustedError, match="'join' is no kind of LabelManager"):
        list(network.check(tmp_path, plans, dataset_json(), "nnUNetTrainerLATUPNet", "3d_fullres"))
