"""What would fail after hours is refused before anything runs."""

import json

import pytest

from nnunet_glims.cli import main
from tests.preprocessed import make_plans

COMPARISON = """\
datasets: [777]
entries:
  - name: A
    trainer: nnUNetTrainerGLIMS
  - name: B
    trainer: nnUNetTrainer
folds: [0]
device: cpu
"""
NAME = "Dataset777_Cubes"
DATASET_JSON = {
    "channel_names": {"0": "a", "1": "b"},
    "labels": {"background": 0, "cube": 1},
    "file_ending": ".nii.gz",
    "numTraining": 6,
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders with a data set of six cases and nnU-Net's plans, and a comparison of two entries."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name / NAME).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "raw" / NAME / "labelsTr").mkdir()
    for case in "abcdef":
        (tmp_path / "raw" / NAME / f"labelsTr/{case}.nii.gz").touch()
    for folder in ("raw", "preprocessed"):
        (tmp_path / folder / NAME / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (tmp_path / "preprocessed" / NAME / "nnUNetPlans.json").write_text(json.dumps(make_plans()))
    (tmp_path / "c.yaml").write_text(COMPARISON)
    return tmp_path


def refused(folders, capsys, message, *command):
    """A command must be refused with a message, and write nothing."""
    assert main([*(command or ("compare", "plan", str(folders / "c.yaml")))]) == 2
    told = capsys.readouterr().err
    assert message in told and "--debug" not in told
    assert not (folders / "c.run").exists()


def test_a_comparison_without_faults_is_planned(folders, capsys):
    assert main(["compare", "plan", str(folders / "c.yaml")]) == 0


FIRST = "    trainer: nnUNetTrainerGLIMS\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nnUNetTrainerGLIMS", "nnUNetTrainerGLISM", ":4: entries.0.trainer: nnU-Net finds no trainer"),
        ("nnUNetTrainerGLIMS", "nnUNetTrainerGLISM", "did you mean 'nnUNetTrainerGLIMS'?"),
        ("nnUNetTrainerGLIMS", "torch", ":4: entries.0.trainer: nnU-Net finds no trainer 'torch'"),
        ("nnUNetTrainerGLIMS", "../../evil", ":4: entries.0.trainer: a text of the form"),
        (FIRST, f"{FIRST}    configuration: 2d\n", ":5: entries.0.configuration: 2d is two-dimensional, and GLIMS is"),
        (FIRST, f"{FIRST}    configuration: ../x\n", ":5: entries.0.configuration: '../x' can be no part of a file's"),
        (FIRST, f"{FIRST}    configuration: 3d_fulres\n", "entry A: configuration '3d_fulres' is not in"),
        (FIRST, f"{FIRST}    plans: ../../evil\n", ":5: entries.0.plans: '../../evil' can be no part of a file's name"),
        (FIRST, f"{FIRST}    plans: nnUNetPlansX\n", "entry A: plans: there is no"),
        (FIRST, f"{FIRST}    plans:\n", ":5: entries.0.plans: a text is wanted, not null"),
        (
            FIRST,
            f"{FIRST}    override: latupnet_brats\n",
            "latupnet_brats is for LATUPNet, and nnUNetTrainerGLIMS trains",
        ),
        (
            FIRST,
            f"{FIRST}    training: [1]\n",
            ":5: entries.0.training: a mapping of keys to values is wanted, not [1]",
        ),
        (
            FIRST,
            f"{FIRST}    training: {{lr: .nan}}\n",
            ":5: entries.0.training.lr: a finite number is wanted, not nan",
        ),
        ("name: A", "name: ../A", ":3: entries.0.name: a text of the form"),
        ("name: A", f"name: {'A' * 300}", ":3: entries.0.name: a text of at most 100 characters is wanted, not"),
        ("folds: [0]", "folds: [true]", ":7: folds.0: a whole number is wanted, not true"),
        ("folds: [0]", "folds: [0.0]", ":7: folds.0: a whole number is wanted, not 0.0"),
        ("folds: [0]", "folds: all", ':7: folds: a list is wanted, not the text "all"'),
        ("folds: [0]", "folds: [0]\nensembles: [[A, A]]", ":8: ensembles: 'A' is there twice in one ensemble"),
        ("folds: [0]", "folds: [0]\nensembles: [A, B]", ':8: ensembles.0: a list is wanted, not the text "A"'),
        ("folds: [0]", "folds: [0]\npublished: [nope]", ":8: published: network 'nope' is unknown"),
        ("folds: [0]", "folds: [0]\npublished: [GLIMS, GLIMS]", ":8: published: 'GLIMS' is there twice"),
        ("folds: [0]", "folds: [0]\nseeds: [on]", ':8: seeds.0: a whole number is wanted, not the text "on"'),
        ("folds: [0]", "folds: [0]\nresources: {cpus: 1000000}", ":8: resources.cpus: a number of at most 1024"),
        ("device: cpu", "device: cpu\ndevice: cpu", ":9: device: this key stands in line 8 already"),
        ("device: cpu", "device: cuda\nresources: {gpus: 0}", "device cuda needs a GPU, and resources say gpus: 0"),
    ],
)
def test_wrong_comparisons_are_refused_when_they_are_read(folders, capsys, old, new, message):
    (folders / "c.yaml").write_text(COMPARISON.replace(old, new, 1))
    refused(folders, capsys, message)


def test_too_many_trainings_are_refused(folders, capsys):
    seeds = ", ".join(map(str, range(2001)))
    text = COMPARISON.replace("  - name: B\n    trainer: nnUNetTrainer\n", "")
    (folders / "c.yaml").write_text(f"{text.replace('[0]', '[0, 1, 2, 3, 4]')}seeds: [{seeds}]\n")
    refused(folders, capsys, "10,005 trainings are too many")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_before_anything_runs(folders, capsys, monkeypatch, device):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (folders / "c.yaml").write_text(COMPARISON.replace("cpu", device))
    refused(folders, capsys, f"device: {device}: ", "compare", "run", str(folders / "c.yaml"))


@pytest.mark.parametrize(
    ("executor", "message"), [("slurm", "there is no sbatch here"), ("local", "there is no nnUNetv2_train here")]
)
def test_programs_that_are_not_there_are_named_before_anything_runs(folders, capsys, monkeypatch, executor, message):
    monkeypatch.setenv("PATH", str(folders))
    monkeypatch.setattr("nnunet_glims.experiments.requirements.find_program", lambda name: name)
    refused(folders, capsys, message, "compare", "run", str(folders / "c.yaml"), "--executor", executor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, ":1: the file: a list is wanted, not an empty mapping"),
        ([], ":1: the file: at least 1 of them is wanted"),
        ([{"train": ["a"]}], ":1: 0.val: this key is required"),
        ([{"train": [1], "val": ["a"]}], ":1: 0.train.0: a text is wanted, not 1"),
        ([{"train": ["a", "x"], "val": ["b"]}], "has no case x of it"),
        ([{"train": [], "val": ["b"]}], "fold 0: no cases to train with"),
        ([{"train": ["a", "b"], "val": ["b"]}], "fold 0: b: a case is named once"),
        ([{"train": ["a", "a"], "val": ["b"]}], "fold 0: a: a case is named once"),
    ],
)
def test_splits_that_do_not_fit_are_refused(folders, capsys, content, message):
    path = folders / "preprocessed" / NAME / "splits_final.json"
    path.write_text(json.dumps(content))
    refused(folders, capsys, f"{path}")
    refused(folders, capsys, message)


def test_a_fold_that_the_splits_lack_is_refused(folders, capsys):
    path = folders / "preprocessed" / NAME / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    (folders / "c.yaml").write_text(COMPARISON.replace("[0]", "[0, 1]"))
    refused(folders, capsys, "has 1 folds, counted from 0, and no fold 1")


def test_too_few_cases_are_refused(folders, capsys):
    for case in "abc":
        (folders / "raw" / NAME / f"labelsTr/{case}.nii.gz").unlink()
    refused(folders, capsys, "3 cases are too few: nnU-Net draws 5 folds")


@pytest.mark.parametrize("content", [None, [], {**DATASET_JSON, "labels": None}, {**DATASET_JSON, "numTraining": [6]}])
def test_a_wrong_dataset_json_is_refused(folders, capsys, content):
    path = folders / "raw" / NAME / "dataset.json"
    path.write_text(json.dumps(content))
    refused(folders, capsys, f"{path}:1: ")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("patch_size", [0, 1, 1], ":1: configurations.3d_fullres.patch_size.0: a number of at least 1"),
        ("patch_size", [30, 32, 32], "30×32×32 does not fit the network of these plans"),
        ("previous_stage", "3d_lowres", "3d_fullres is the second stage of a cascade, and the first one"),
        ("inherits_from", "3d_fullres", "inherit from each other in a circle"),
        ("architecture", None, "it has no architecture"),
    ],
)
def test_plans_that_cannot_be_trained_are_refused(folders, capsys, key, value, message):
    plans = make_plans()
    plans["configurations"]["3d_fullres"][key] = value
    if value is None:
        del plans["configurations"]["3d_fullres"][key]
    (folders / "preprocessed" / NAME / "nnUNetPlans.json").write_text(json.dumps(plans))
    refused(folders, capsys, message)


@pytest.mark.parametrize("planned", [True, False])
def test_arguments_that_the_network_does_not_take_are_refused_before_anything_is_preprocessed(folders, capsys, planned):
    override = {"description": "D", "source": "S", "network": "GLIMS", "network_arguments": {"feature_size": "wide"}}
    (folders / "own.json").write_text(json.dumps(override))
    (folders / "c.yaml").write_text(COMPARISON.replace(FIRST, f"{FIRST}    override: own.json\n", 1))
    if not planned:
        (folders / "preprocessed" / NAME / "nnUNetPlans.json").unlink()
    refused(folders, capsys, "own.json: network_arguments: feature_size: a whole number is wanted, not the text")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "transpose_forward",
            [0, 0, 0],
            "transpose_forward: the axes 0, 1 and 2 are wanted in some order, not [0, 0, 0]",
        ),
        ("dataset_name", "Dataset778_Balls", "dataset_name: these are plans of Dataset778_Balls"),
    ],
)
def test_plans_of_another_data_set_or_without_an_axis_are_not_built_upon(folders, capsys, key, value, message):
    (folders / "preprocessed" / NAME / "nnUNetPlans.json").write_text(json.dumps({**make_plans(), key: value}))
    refused(folders, capsys, message, "plans", "apply", "latupnet_cpu_demo", "-d", "777")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{one}: &a{one} [{', '.join([f'*a{one - 1}'] * 10)}]\n" for one in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB.encode(), "with its aliases it has more than 100,000 values"),
        (b"[" * 1000, "nested more than 50 levels deep"),
        (COMPARISON.encode("utf-16"), "this text is in UTF-16"),
        (b"\x00" * 300_000, "300,000 bytes, and such a file may have 262,144"),
        (b"- 1", ":1: the file: a mapping of keys to values is wanted, not [1]"),
    ],
)
def test_files_that_are_no_comparison_are_refused_at_once(folders, capsys, content, message):
    (folders / "c.yaml").write_bytes(content)
    for action in ("plan", "run", "status", "report"):
        refused(folders, capsys, message, "compare", action, str(folders / "c.yaml"))


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 10_000, b'{"ending": 3}'])
def test_records_that_are_none_are_taken_for_missing(folders, capsys, content):
    record = folders / "c.run/jobs/train_D777_A_fold0/job.json"
    record.parent.mkdir(parents=True)
    record.write_bytes(content)
    for action in ("plan", "status"):
        assert main(["compare", action, str(folders / "c.yaml")]) == 0


def test_a_folder_in_place_of_a_record_is_named(folders, capsys):
    (folders / "c.run/jobs/train_D777_A_fold0/job.json").mkdir(parents=True)
    assert main(["compare", "status", str(folders / "c.yaml")]) == 1
    assert "train_D777_A_fold0/job.json: cannot be read: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "code"), [("null", 2), ("[]", 2), ('{"ingredients": 3}', 2), ("{}", 0)])
def test_a_damaged_record_of_preprocessed_data_is_named(folders, capsys, content, code):
    path = folders / "preprocessed" / NAME / "nnunet_glims_prepared.json"
    path.write_text(content)
    assert main(["compare", "status", str(folders / "c.yaml")]) == code
    assert code == 0 or f"{path}:1: " in capsys.readouterr().err
