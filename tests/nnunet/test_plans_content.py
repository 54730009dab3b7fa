"""Plans that are no plans, and overrides of things that cannot be trained: refused by every command, and nothing is written."""

import json

import pytest

from nnunet_glims.cli import main
from tests.preprocessed import DATASET, make_plans

NO_PLANS = {
    "null": None,
    "a list": [],
    "a text": "plans",
    "nothing in it": {},
    "configurations null": {"plans_name": "nnUNetPlans", "configurations": None},
    "no configuration": {"plans_name": "nnUNetPlans", "configurations": {}},
    "a configuration null": {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": None}},
}
WRONG_VALUES = [
    ("patch_size", [0, 32, 32], "patch_size.0: a number of at least 1 is wanted, not 0"),
    ("patch_size", [-1, 32, 32], "patch_size.0: a number of at least 1 is wanted, not -1"),
    ("patch_size", [10**6] * 3, "patch_size: it has 1,000,000,000,000,000,000 voxels, and may have 134,217,728"),
    ("patch_size", ["32"] * 3, 'patch_size.0: a whole number is wanted, not the text "32"'),
    ("patch_size", [32.5] * 3, "patch_size.0: a whole number is wanted, not 32.5"),
    ("patch_size", "32", 'patch_size: a list is wanted, not the text "32"'),
    ("patch_size", None, "patch_size: a list is wanted, not null"),
    ("patch_size", [32], "patch_size: at least 2 of them is wanted, not [32]"),
    ("spacing", [0, 1, 1], "spacing.0: a number above 0 is wanted, not 0"),
    ("spacing", [1e6, 1, 1], "spacing.0: a number of at most 10000 is wanted, not 1000000.0"),
    ("spacing", [float("nan"), 1, 1], "spacing.0: a finite number is wanted, not nan"),
    ("spacing", {}, "spacing: a list is wanted, not an empty mapping"),
    ("spacing", [1.0, 1.0], "patch_size: it has 3 sides, and spacing has 2"),
    ("batch_size", 0, "batch_size: a number of at least 1 is wanted, not 0"),
    ("batch_size", True, "batch_size: a whole number is wanted, not true"),
    ("batch_size", 10**6, "batch_size: patches of 32,768 voxels in this number are more than 1,073,741,824 voxels"),
    ("inherits_from", "3d_fullres", "inherits_from: configurations inherit from each other in a circle"),
    ("inherits_from", "2e", "inherits_from: there is no configuration '2e': did you mean '2d'?"),
    ("data_identifier", "../elsewhere", "data_identifier: a text of the form"),
    (
        "resampling_fn_seg_kwargs",
        {"order_z": []},
        "resampling_fn_seg_kwargs.order_z: a whole number is wanted, not an empty",
    ),
    ("preprocessor_name", 3, "preprocessor_name: a text is wanted, not 3"),
    ("batch_dice", "yes", 'batch_dice: true or false is wanted, not the text "yes"'),
    ("architecture", None, "architecture: a mapping of keys to values is wanted, not null"),
    (
        "normalization_schemes",
        ["ZScoreNormalization"],
        "use_mask_for_norm: it has 2 values, and normalization_schemes has 1",
    ),
]
APPLY = ["plans", "apply", "glims_low_vram", "-d", "777"]
AUTO = ["plans", "auto", "--network", "latupnet", "--vram", "2", "-d", "777"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The preprocessed folder of a data set with nnU-Net's plans."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "preprocessed" / DATASET
    folder.mkdir()
    described = {
        "channel_names": {"0": "a", "1": "b"},
        "labels": {"background": 0, "cube": 1},
        "file_ending": ".nii.gz",
        "numTraining": 6,
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    (folder / "nnUNetPlans.json").write_text(json.dumps(make_plans(), indent=1))
    return folder


def refused(capsys, folder, *commands):
    """Run commands, which must be refused and write nothing; return their messages."""
    messages = []
    for command in commands:
        before = sorted(folder.iterdir())
        assert main(command) == 2
        messages.append(capsys.readouterr().err)
        assert "--debug" not in messages[-1] and sorted(folder.iterdir()) == before
    return messages


@pytest.mark.parametrize("content", NO_PLANS.values(), ids=NO_PLANS)
def test_what_is_no_plans_is_refused(folder, capsys, content):
    (folder / "nnUNetPlans.json").write_text(json.dumps(content))
    for message in refused(capsys, folder, APPLY, AUTO):
        assert f"{folder / 'nnUNetPlans.json'}:1: " in message and "no plans" in message


@pytest.mark.parametrize(("key", "value", "message"), WRONG_VALUES)
def test_wrong_values_in_plans_are_named_with_line_and_key(folder, capsys, key, value, message):
    path = folder / "nnUNetPlans.json"
    plans = make_plans()
    plans["configurations"]["3d_fullres"][key] = value
    path.write_text(json.dumps(plans, indent=1))
    for told in refused(capsys, folder, APPLY, AUTO):
        assert f"configurations.3d_fullres.{message}" in told
        line = int(told.split(f": configurations.3d_fullres.{message}")[0].rpartition(":")[2])
        assert message.split(":")[0].split(".")[0] in "".join(path.read_text().splitlines()[max(0, line - 3) : line])


@pytest.mark.parametrize("key", ["batch_size", "spacing", "normalization_schemes", "median_image_size_in_voxels"])
def test_plans_that_lack_something_are_refused(folder, capsys, key):
    plans = make_plans()
    plans["configurations"]["3d_fullres"].pop(key)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    for message in refused(capsys, folder, APPLY, AUTO):
        assert f"it has no {key}" in message


@pytest.mark.parametrize("key", ["channel_names", "labels", "numTraining", "file_ending"])
@pytest.mark.parametrize("value", [None, [1], "x", {}], ids=str)
def test_a_wrong_dataset_json_is_refused(folder, capsys, key, value):
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**described, key: value}))
    if key == "numTraining" and value is None:
        return  # plans apply does not need it
    (message,) = refused(capsys, folder, APPLY)
    assert f"{folder / 'dataset.json'}:1: {key}: " in message


def test_labels_that_nnunet_refuses_are_told_with_the_file(folder, capsys):
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(
        json.dumps({**described, "labels": {"background": 0, "whole": [1, 2], "core": 2}})
    )
    for message in refused(capsys, folder, APPLY, AUTO):
        assert f"{folder / 'dataset.json'}: labels: nnU-Net refuses these: " in message


OURS = {"description": "mine", "source": "ours"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], ":1: the file: a mapping of keys to values is wanted, not an empty list"),
        (None, ":1: the file: a mapping of keys to values is wanted, not null"),
        ({}, ":1: description: this key is required"),
        ({"description": 1, "source": "ours"}, ":1: description: a text is wanted, not 1"),
        (
            {**OURS, "patch_size": [10**6] * 3},
            ": patch_size: 1 patches of 1e+06×1e+06×1e+06 voxels can be trained on no GPU",
        ),
        ({**OURS, "patch_size": [30, 32, 32]}, "30×32×32 does not fit the network of these plans, whose strides need"),
        ({**OURS, "batch_size": 10**9}, "1000000000 patches of 32×32×32 voxels can be trained on no GPU"),
        ({**OURS, "spacing": [1e6] * 3}, ":1: spacing.0: a number of at most 10000 is wanted"),
        ({**OURS, "spacing": [100] * 3}, "spacing: with 100×100×100 mm the median image has 0.4×0.4×0.4 voxels"),
        ({**OURS, "spacing": [1e-4] * 3}, "spacing: with 0.0001×0.0001×0.0001 mm the median image has 360000×"),
        ({**OURS, "normalization_schemes": []}, ":1: normalization_schemes: at least 1 of them"),
        ({**OURS, "network": ["GLIMS"]}, ':1: network: a text is wanted, not ["GLIMS"]'),
        ({**OURS, "network": "GLIMS", "network_arguments": {"depths": [10**8] * 5}}, "100000000 is too large"),
        ({**OURS, "network": "GLIMS", "network_arguments": []}, ":1: network_arguments: a mapping of keys to values"),
        ({**OURS, "training": {"lr": True}}, "training: lr: a number is wanted, not true"),
    ],
)
def test_overrides_that_cannot_be_trained_are_refused(folder, tmp_path, capsys, content, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    (told,) = refused(capsys, folder, ["plans", "apply", str(path), "-d", "777"])
    assert "mine.json" in told and message in told


@pytest.mark.parametrize(
    "command",
    [
        [*APPLY, "-p", "../../nnUNetPlans"],
        [*APPLY, "-c", "../3d_fullres"],
        [*AUTO, "-o", "../sized"],
        [*AUTO, "-o", "a__b"],
        [*AUTO, "-p", "/etc/passwd"],
    ],
)
def test_names_that_are_paths_are_refused(folder, capsys, command):
    (message,) = refused(capsys, folder, command)
    assert "can be no part of a file's name" in message or "is not in the plans" in message


def test_an_override_whose_name_nnunet_would_split_is_refused(folder, tmp_path, capsys):
    (tmp_path / "a__b.json").write_text(json.dumps(OURS))
    (message,) = refused(capsys, folder, ["plans", "apply", str(tmp_path / "a__b.json"), "-d", "777"])
    assert "'a__b' can be no part of a file's name" in message
