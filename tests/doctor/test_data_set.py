"""What the doctor sees in data sets made ill on purpose."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from nnunet_glims.cli import main
from nnunet_glims.doctor import data_set, discovery
from nnunet_glims.doctor.folders import FOLDERS
from tests.preprocessed import DATASET, dataset_json, make_plans, write_preprocessed
from tests.test_output import Terminal

TRAINER = "nnUNetTrainerGLIMS"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A preprocessed data set whose plans name our smallest network."""
    root = tmp_path_factory.mktemp("preprocessed")
    write_preprocessed(root, make_plans("GLIMS"))
    return root


@pytest.fixture
def folders(tmp_path, monkeypatch, template):
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    shutil.copytree(template / DATASET, tmp_path / "nnUNet_preprocessed" / DATASET)
    return tmp_path


@pytest.fixture
def dataset(folders):
    return folders / "nnUNet_preprocessed" / DATASET


def examine(name="777", plans="nnUNetPlans", configuration="3d_fullres", trainer="nnUNetTrainer"):
    """Topic -> finding; of several with one topic, their states and ways out are joined."""
    found = {}
    for finding in data_set.check(name, trainer, plans, configuration):
        before = found.get(finding.topic)
        if before is not None:
            assert before.verdict == finding.verdict
            finding = type(finding)(
                finding.topic,
                finding.verdict,
                f"{before.state} | {finding.state}",
                f"{before.way_out} | {finding.way_out}",
            )
        found[finding.topic] = finding
    return found


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_sound_data_set_is_looked_into(dataset):
    found = examine(trainer=TRAINER)
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert "strides" in found["patch and batch"].state
    assert "M parameters" in found["network"].state
    assert "GiB in float32" in found["training memory"].state
    assert found["splits"].state == "1 folds" and found["preprocessed data"].state.endswith("4 cases")


LABELS = {
    "version 1": ({"0": "background", "1": "cube"}, "names first"),
    "no background": ({"cube": 1, "core": 2}, "no 'background'"),
    "capital background": ({"Background": 0, "cube": 1}, "'Background' must be named so"),
    "background not 0": ({"background": 3, "cube": 1}, "must be 0"),
    "gap": ({"background": 0, "cube": 1, "core": 3}, "not consecutive: 2"),
    "huge": ({"background": 0, "cube": 10**15}, "not consecutive: 1, 2, 3"),
    "negative": ({"background": 0, "cube": -1}, "-1 is below 0"),
    "list": ([0, 1, 2], "labels is a list, not a mapping"),
    "null": (None, "labels is a null"),
    "text": ({"background": 0, "cube": "one"}, "cube: 'one' is no label"),
    "bool": ({"background": 0, "cube": True}, "cube: True is no label"),
    "empty region": ({"background": 0, "cube": []}, "cube: [] is no label"),
    "no order": ({"background": 0, "whole": [1, 2], "core": [2]}, "no regions_class_order"),
    "ignore in between": ({"background": 0, "ignore": 1, "cube": 2}, "nnU-Net refuses the labels"),
}


@pytest.mark.parametrize(("labels", "state"), LABELS.values(), ids=LABELS)
def test_labels_that_nnunet_refuses_fail_and_lose_nothing_else(dataset, labels, state):
    change(dataset / "dataset.json", labels=labels)
    found = examine(trainer=TRAINER)
    assert found["dataset.json"].verdict == "fail" and state in found["dataset.json"].state
    assert str(dataset / "dataset.json") in found["dataset.json"].way_out
    assert found["preprocessed data"].verdict == found["splits"].verdict == "ok"
    assert (found["network"].verdict, found["network"].way_out) == ("fail", "correct dataset.json first")


@pytest.mark.parametrize("order", [None, [1], [1, 2, 3], "1, 2", ["whole", "core"], {"whole": 1}])
def test_an_order_of_regions_that_does_not_fit_fails(dataset, order):
    change(dataset / "dataset.json", **dataset_json(regions=True) | {"regions_class_order": order})
    assert "regions_class_order" in examine()["dataset.json"].state


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ([1], "this is a list"),
        (None, "this is a null"),
        ("text", "this is a text"),
        ({}, "no labels | "),
        ({**dataset_json(), "channel_names": ["a", "b"]}, "channel_names is a list"),
        ({**dataset_json(), "channel_names": {"1": "a", "2": "b"}}, "numbered 1, 2, not 0 to 1"),
        ({**dataset_json(), "channel_names": {"0": {"a": 1}, "1": None}}, "channel_names: 0: \"{'a': 1}\" is no name"),
        ({**dataset_json(), "channel_names": {"0": "", "1": "b"}}, "channel_names: 0: '' is no name"),
        ({**dataset_json(), "file_ending": None}, "file_ending"),
        ({**dataset_json(), "file_ending": ["nii"]}, "file_ending"),
        ({"modality": {"0": "a"}, "labels": {"background": 0}, "file_ending": ".nii"}, "'modality', as in version 1"),
    ],
)
def test_a_dataset_json_of_another_form_fails(dataset, content, state):
    (dataset / "dataset.json").write_text(json.dumps(content))
    found = examine()
    assert state.rstrip(" |") in found["dataset.json"].state and found["dataset.json"].verdict == "fail"
    assert found["splits"].verdict == "ok"


@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"\xff{"), lambda file: None]
)
def test_a_dataset_json_that_cannot_be_read_fails(dataset, damage):
    damage(dataset / "dataset.json")
    if (dataset / "dataset.json").exists() and b"\xff" not in (dataset / "dataset.json").read_bytes():
        (dataset / "dataset.json").write_text('{"labels": ')
    found = examine()
    assert found["dataset.json"].verdict == "fail" and "copy it from nnUNet_raw" in found["dataset.json"].way_out
    assert found["splits"].verdict == "ok"


def test_channels_that_do_not_fit_fail(dataset):
    change(dataset / "dataset.json", channel_names={"0": "a"})
    found = examine()
    assert "1 channels, the plans have normalisations for 2" in found["channels"].state
    assert "has 2 channels, dataset.json 1" in found["preprocessed data"].state
    assert found["channels"].verdict == found["preprocessed data"].verdict == "fail"


def test_labels_that_changed_after_preprocessing_are_told(folders, dataset):
    raw = folders / "nnUNet_raw" / DATASET
    raw.mkdir()
    content = json.loads((dataset / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content))
    assert "dataset.json" not in examine()
    content["labels"]["new"] = 3
    (raw / "dataset.json").write_text(json.dumps(content))
    found = examine()["dataset.json"]
    assert found.verdict == "warn" and found.way_out.startswith("nnUNetv2_plan_and_preprocess -d 777")


PLANS = {
    "a list": (lambda plans: [plans], "These are no plans"),
    "null": (lambda plans: None, "These are no plans"),
    "empty": (lambda plans: {}, "These are no plans"),
    "no configurations": (lambda plans: {**plans, "configurations": {}}, "configurations"),
    "configurations are a list": (lambda plans: {**plans, "configurations": ["3d_fullres"]}, "no plans"),
    "no name": (lambda plans: {k: v for k, v in plans.items() if k != "plans_name"}, "plans_name"),
    "no data set": (lambda plans: {k: v for k, v in plans.items() if k != "dataset_name"}, "dataset_name"),
    "of another data set": (lambda plans: {**plans, "dataset_name": "Dataset001_A"}, "made for 'Dataset001_A'"),
    "another name": (lambda plans: {**plans, "plans_name": "mine"}, "named 'mine' inside"),
    "no patch": (lambda plans: configuration(plans, patch_size=None), "patch_size"),
    "a patch of text": (lambda plans: configuration(plans, patch_size="large"), ""),
    "no architecture": (lambda plans: configuration(plans, architecture=None), "has no architecture"),
    "an architecture of text": (lambda plans: configuration(plans, architecture="unet"), ""),
    "an unknown reader": (lambda plans: {**plans, "image_reader_writer": "x"}, "image_reader_writer_class"),
    "no preprocessor": (lambda plans: configuration(plans, preprocessor_name=None), "preprocessor_class"),
    "an unknown function": (lambda plans: configuration(plans, resampling_fn_data="x"), "resampling_fn_data"),
    "no axes": (lambda plans: {**plans, "transpose_forward": [0, 0, 1]}, "transpose_forward"),
    "an unknown argument": (lambda plans: configuration(plans, training={"epoch": 1}), "epoch"),
}


def configuration(plans, **values):
    plans["configurations"]["3d_fullres"].update(values)
    for name, value in values.items():
        if value is None:
            del plans["configurations"]["3d_fullres"][name]
    return plans


@pytest.mark.parametrize(("change_plans", "state"), PLANS.values(), ids=PLANS)
def test_plans_that_are_none_fail_and_lose_nothing_else(dataset, change_plans, state):
    (dataset / "nnUNetPlans.json").write_text(json.dumps(change_plans(make_plans("GLIMS"))))
    found = examine(trainer=TRAINER)
    failed = [finding for finding in found.values() if finding.verdict == "fail"]
    assert failed and any(state in finding.state for finding in failed) and all(finding.way_out for finding in failed)
    assert found["splits"].verdict == "ok"


@pytest.mark.parametrize(
    ("there", "asked", "way_out"),
    [
        ([], "nnUNetPlans", "nnUNetv2_plan_experiment -d 777"),
        (["nnUNetPlans"], "nnUNetPlans_cpu_demo", f"nnunet-glims plans apply cpu_demo -d {DATASET}"),
        (
            ["nnUNetPlans", "nnUNetResEncUNetLPlans"],
            "nnUNetResEncUNetLPlans_cpu_demo",
            f"nnunet-glims plans apply cpu_demo -d {DATASET} -p nnUNetResEncUNetLPlans",
        ),
        (["nnUNetPlans"], "nnUNetPlans_glims_8GB", f"plans auto --network glims --vram 8 -d {DATASET}"),
        (["nnUNetPlans"], "nnUNetPlans_mine", f"nnunet-glims plans apply mine.json -d {DATASET}"),
        (["nnUNetResEncUNetLPlans"], "nnUNetPlans", "-p nnUNetResEncUNetLPlans, or nnUNetv2_plan_experiment -d 777"),
        (["nnUNetResEncUNetLPlans"], "nnUNetResEncUNetMPlans", "-p nnUNetResEncUNetLPlans"),
    ],
)
def test_the_way_out_of_missing_plans_makes_them_or_names_those_that_are_there(dataset, there, asked, way_out):
    plans = (dataset / "nnUNetPlans.json").read_text()
    (dataset / "nnUNetPlans.json").unlink()
    for name in there:
        (dataset / f"{name}.json").write_text(plans)
    found = examine(plans=asked)
    assert found["plans"].verdict == "fail" and asked in found["plans"].state
    assert way_out in found["plans"].way_out
    assert found["splits"].verdict == "ok"


def test_without_plans_and_fingerprint_the_way_out_plans_and_preprocesses(dataset):
    (dataset / "nnUNetPlans.json").unlink()
    (dataset / "dataset_fingerprint.json").unlink()
    assert examine()["plans"].way_out == "nnUNetv2_plan_and_preprocess -d 777 -c 3d_fullres"


def test_2d_configurations_fail(dataset):
    assert "use 3d_fullres" in examine(configuration="2d")["plans"].state


CASES = [f"cube_{number}" for number in range(4)]
SPLITS = {
    "a mapping": ({"train": CASES[:3], "val": CASES[3:]}, "fail", "no list of folds"),
    "no folds": ([], "fail", "no folds in it"),
    "null": (None, "fail", "no list of folds"),
    "lists": ([CASES], "fail", "fold 0 has no list 'train'"),
    "no validation": ([{"train": CASES}], "fail", "fold 0 has no list 'val'"),
    "empty validation": ([{"train": CASES, "val": []}], "fail", "fold 0 has no cases in 'val'"),
    "empty training": ([{"train": [], "val": CASES}], "fail", "fold 0 has no cases in 'train'"),
    "numbers": ([{"train": [1, 2], "val": [3]}], "fail", "fold 0 has no list 'train'"),
    "overlap": ([{"train": CASES, "val": CASES[2:]}], "fail", "validates cases on which it trains: cube_2, cube_3"),
    "a case twice": ([{"train": CASES[:2] * 2, "val": CASES[3:]}], "fail", "more than once"),
    "unknown": ([{"train": ["cube_0", "zz"], "val": ["cube_1"]}], "fail", "not preprocessed: zz"),
    "files": ([{"train": ["cube_0.nii.gz"], "val": ["cube_1"]}], "fail", "without endings"),
    "validated twice": (
        [{"train": CASES[:3], "val": CASES[3:]}, {"train": CASES[:2], "val": CASES[2:]}],
        "warn",
        "more than one fold: cube_3",
    ),
    "left out": ([{"train": CASES[:2], "val": CASES[3:]}], "warn", "1 preprocessed cases are in no fold: cube_2"),
}


@pytest.mark.parametrize(("splits", "verdict", "state"), SPLITS.values(), ids=SPLITS)
def test_splits_with_which_a_fold_cannot_be_trained_are_not_ok(dataset, splits, verdict, state):
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    found = examine()["splits"]
    assert found.verdict == verdict and state in found.state and str(dataset / "splits_final.json") in found.way_out


def test_too_few_cases_for_five_folds_fail(dataset):
    (dataset / "splits_final.json").unlink()
    assert "cannot make five folds" in examine()["splits"].state


def cut(file):
    file.write_bytes(file.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("file", "damage", "state"),
    [
        ("cube_1.b2nd", cut, "cube_1.b2nd is damaged"),
        ("cube_1_seg.b2nd", cut, "cube_1_seg.b2nd is damaged"),
        ("cube_1.b2nd", lambda file: file.write_bytes(b""), "cube_1.b2nd is damaged"),
        ("cube_1.pkl", lambda file: file.unlink(), "cube_1 has no cube_1.pkl"),
        ("cube_1_seg.b2nd", lambda file: file.unlink(), "cube_1 has no cube_1_seg.b2nd"),
    ],
)
def test_damaged_preprocessed_files_are_named(dataset, file, damage, state):
    damage(dataset / "nnUNetPlans_3d_fullres" / file)
    found = examine()["preprocessed data"]
    assert found.verdict == "fail" and state in found.state and "nnUNetv2_preprocess -d 777" in found.way_out


def test_missing_and_empty_preprocessed_data_fail(dataset):
    shutil.rmtree(dataset / "nnUNetPlans_3d_fullres")
    found = examine()["preprocessed data"]
    assert found.verdict == "fail" and found.way_out.startswith("nnUNetv2_preprocess -d 777")
    (dataset / "nnUNetPlans_3d_fullres").mkdir()
    assert "no cases" in examine()["preprocessed data"].state


def test_damaged_checkpoints_are_named(folders):
    fold = folders / f"nnUNet_results/{DATASET}/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0"
    fold.mkdir(parents=True)
    content = {"network_weights": {"a": torch.ones(3)}, "trainer_name": "nnUNetTrainer", "current_epoch": 1}
    torch.save(content, fold / "checkpoint_best.pth")
    (fold / "checkpoint_latest.pth").write_bytes((fold / "checkpoint_best.pth").read_bytes()[:-50])
    torch.save({**content, "network_weights": {"a": torch.full([3], torch.nan)}}, fold / "checkpoint_final.pth")
    torch.save({"a": 1}, fold / "checkpoint_mine.pth")
    torch.save({**content, "path": Path("x")}, fold / "checkpoint_other.pth")
    found = examine()
    assert found["fold_0/checkpoint_best.pth"].verdict == "ok"
    assert "is damaged" in found["fold_0/checkpoint_latest.pth"].state
    assert (
        found["fold_0/checkpoint_final.pth"].verdict == "fail"
        and "not finite" in found["fold_0/checkpoint_final.pth"].state
    )
    assert found["fold_0/checkpoint_mine.pth"].verdict == "fail"
    assert found["fold_0/checkpoint_other.pth"].verdict == "warn"


@pytest.mark.parametrize(
    ("asked", "way_out"),
    [
        ("778", f"there are 777 ({DATASET})"),
        ("Cubes", f"-d 777, or -d {DATASET}"),
        (f"/data/{DATASET}/", f"-d 777, or -d {DATASET}"),
        ("Dataset777_Cubs", f"give its number or name: did you mean {DATASET!r}?"),
        ("", "give its number or name: known are"),
    ],
)
def test_a_data_set_that_is_not_there_is_told_with_those_that_are(folders, asked, way_out):
    (found,) = examine(asked).values()
    assert found.verdict == "fail" and found.way_out.startswith(way_out)


def test_two_data_sets_of_one_number_are_told(folders):
    (folders / "nnUNet_results/Dataset777_Other").mkdir()
    (found,) = examine("777").values()
    assert found.verdict == "fail" and "rename" in found.way_out
    assert f"{DATASET} in nnUNet_preprocessed" in found.state and "Dataset777_Other in nnUNet_results" in found.state
    found = examine(DATASET)
    assert found["data set"].verdict == "fail" and found["network"].verdict == "ok"


def test_a_raw_data_set_is_to_be_preprocessed(folders, monkeypatch):
    (folders / "nnUNet_raw/Dataset004_Raw").mkdir()
    (found,) = examine("4").values()
    assert found.way_out == "nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres"
    monkeypatch.delenv("nnUNet_preprocessed")
    (found,) = examine("4").values()
    assert found.way_out == "set nnUNet_preprocessed first"


def test_without_an_optional_package_its_network_is_a_finding(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    monkeypatch.delitem(sys.modules, "nnunet_glims.architectures.swin_unetr", raising=False)
    (dataset / "nnUNetPlans.json").write_text(json.dumps(make_plans(warmup_epochs=0)))
    found = examine(trainer="nnUNetTrainerSwinUNETR")
    assert found["network"].verdict == "fail" and "nnunet-glims[swinunetr]" in found["network"].state
    assert found["splits"].verdict == "ok"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_command_finds_as_much_on_output_of_every_encoding(dataset, monkeypatch, encoding):
    monkeypatch.setattr(discovery, "check", lambda _: iter(()))
    change(dataset / "dataset.json", labels={"0": "background", "1": "größe→"})
    monkeypatch.setattr(sys, "stdout", Terminal(encoding))
    assert main(["doctor", "-d", "777"]) == 1
    out = sys.stdout.bytes.decode(encoding)
    assert "names first" in out and "-> correct it in nnUNet_raw" in out and "splits" in out
