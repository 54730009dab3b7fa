"""Steps of the demo are skipped only where they were made by the same command from the same inputs."""

import sys

import pytest
import torch
from rich.console import Console

from nnunet_glims.cli import main
from nnunet_glims.demo import pipeline
from nnunet_glims.demo.pipeline import Steps, Workspace
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.locks import lock

PROGRAM = """
from pathlib import Path
Path("made").mkdir(exist_ok=True)
for file in ("made/result", "runs"):
    with open(file, "a") as stream:
        stream.write("x")
"""
INPUTS = {"plans": {"epochs": 2}, "files": {"image": [1, 2]}}


@pytest.fixture
def step(tmp_path):
    """Runs a step that appends a character to its result; returns the result, and how often the command has run."""
    steps = Steps(Workspace(tmp_path, tmp_path / "raw", "cpu"), Console(quiet=True))

    def step(program=PROGRAM, inputs=INPUTS, speed=()):
        made = tmp_path / "made"
        steps.run("step", "A step", [sys.executable, "-c", program], inputs, [made / "result"], made, speed)
        return (made / "result").read_text(), len((tmp_path / "runs").read_text())

    return step


def test_an_undisturbed_step_is_not_run_again_whatever_its_workers(step):
    assert step() == step() == step(speed=["-np", "7"]) == ("x", 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"program": f"{PROGRAM}\n"},
        {"inputs": {**INPUTS, "plans": {"epochs": 3}}},
        {"inputs": {**INPUTS, "files": {"image": [1, 3]}}},
    ],
    ids=["command", "plans", "files"],
)
def test_another_ingredient_has_the_step_made_again(step, changed):
    step()
    assert step(**changed) == ("x", 2)
    assert step(**changed) == ("x", 2)
    assert step() == ("x", 3)


def test_another_version_has_the_step_made_again(step, monkeypatch):
    step()
    monkeypatch.setattr(pipeline, "__version__", "99")
    assert step() == ("x", 2)


def test_what_failed_is_continued_and_what_is_missing_is_made_again(step, tmp_path):
    fail = f"{PROGRAM}\nprint('why')\nraise SystemExit(3 if len(open('runs').read()) == 1 else 0)"
    with pytest.raises(ProcessingError, match=r"(?s)exit code 3.*why"):
        step(fail)
    assert step(fail) == ("xx", 2)  # the folder was kept
    (tmp_path / "made/result").unlink()
    assert step(fail) == ("x", 3)


@pytest.mark.parametrize("missing", ["dataset.json", "imagesTr", "labelsTr", None])
def test_a_folder_that_is_no_raw_data_set_is_refused(missing, tmp_path):
    data = tmp_path / ("Dataset007_Mine" if missing else "mine")
    for name in {"dataset.json", "imagesTr", "labelsTr"} - {missing}:
        (data / name).mkdir(parents=True)
    with pytest.raises(UsageError, match="this is no raw data set of nnU-Net"):
        pipeline.run_demo(tmp_path / "out", data=data)


def test_results_without_a_record_are_made_again(step, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made/result").write_text("of an older demo")
    assert step() == ("x", 1)


@pytest.mark.parametrize("content", ["{", "[]", '{"finished": true}'])
def test_a_damaged_record_has_the_step_made_again(content, step, tmp_path):
    step()
    (tmp_path / "logs/step.json").write_text(content)
    assert step() == ("x", 2)


def other_raw(tmp_path, content="{}"):
    folder = tmp_path / "Dataset123_Mine"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(content)
    return folder


DATASET = '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}'
NO_DATA = {
    "there is no such folder": lambda tmp_path: tmp_path / "nowhere",
    "this is no raw data set of nnU-Net": lambda tmp_path: tmp_path,
    "dataset.json": lambda tmp_path: other_raw(tmp_path),
    "there are no label maps": lambda tmp_path: other_raw(tmp_path, DATASET),
}


@pytest.mark.parametrize("message", NO_DATA)
def test_wrong_data_leave_no_folder(message, tmp_path, capsys):
    data = NO_DATA[message](tmp_path)
    assert main(["demo", "--data", str(data), "--out", str(tmp_path / "out/demo")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", [".", "x", "imagesTr/demo"])
def test_it_does_not_write_into_the_data(place, tmp_path, capsys):
    data = other_raw(tmp_path, DATASET)
    (data / "labelsTr/a.nii.gz").touch()
    before = sorted(data.rglob("*"))
    assert main(["demo", "--data", str(data), "--out", str(data / place)]) == 2
    assert "among what is read from" in capsys.readouterr().err and sorted(data.rglob("*")) == before


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(device, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["demo", "--device", device, "--out", str(tmp_path / "out")]) == 2
    assert f"--device {device}: torch finds none" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_two_demos_do_not_work_in_one_folder(tmp_path, capsys):
    with lock(tmp_path / "out/logs/demo.lock", "another demo"):
        assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert "another process does this already" in capsys.readouterr().err
