"""Comparisons whose commands are stand-ins: they leave the files that nnU-Net would, and a line for each start."""

import json
import sys
import textwrap

import pytest

from nnunet_glims.experiments.jobs import Plan

COMPARISON = """\
title: Stand-in
datasets: [7]
entries:
  - name: GLIMS
    trainer: nnUNetTrainerGLIMS
  - name: nnU-Net
    trainer: nnUNetTrainer
folds: [0, 1]
device: cpu
"""
STAND_IN = """
    import sys, time
    from pathlib import Path
    started, seconds, code, *made = sys.argv[1:]
    with open(started, "a") as file:
        file.write(f"{Path(made[0]).parent if made else '-'}\\n")
    print("working", flush=True)
    time.sleep(float(seconds))
    for name in made:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")
    sys.exit(int(code))
"""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's three folders, with an empty data set 7."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "raw/Dataset007_Toy").mkdir()
    return tmp_path


@pytest.fixture
def plan(folders):
    """The plan of COMPARISON."""
    path = folders / "toy.yaml"
    path.write_text(COMPARISON)
    return Plan(path)


@pytest.fixture
def started(folders):
    """The file with a line for each command that was started."""
    return folders / "started.txt"


@pytest.fixture
def stand_ins(folders, started, monkeypatch):
    """Replaces the commands of all plans; settings by job: seconds that it takes, its exit code."""
    script = folders / "stand_in.py"
    script.write_text(textwrap.dedent(STAND_IN))
    seconds, codes = {}, {}

    def commands(plan, job):
        code = codes.get(job.name, 0)
        return [
            [
                sys.executable,
                str(script),
                str(started),
                str(seconds.get(job.name, 0)),
                str(code),
                *made(plan, job, code),
            ]
        ]

    monkeypatch.setattr(Plan, "commands", commands)
    return seconds, codes


def made(plan, job, code=0):
    """What a job leaves when it is done."""
    if code:
        return []
    if job.kind == "train":
        return [str(plan.fold(job) / name) for name in ("checkpoint_final.pth", "validation/summary.json")]
    if job.kind == "prepare":
        folder = plan.preprocessed / plan.dataset_names[job.dataset]
        folder.mkdir(exist_ok=True)
        plans = {
            "plans_name": "nnUNetPlans",
            "configurations": {"3d_fullres": {"data_identifier": "data", "patch_size": [8, 8, 8]}},
        }
        (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps({"numTraining": 1}))
        return [str(folder / name) for name in ("data/case.pkl", "splits_final.json")]
    if job.kind == "report":
        return [str(plan.report(job.dataset) / "leaderboard.html")]
    return [str(plan._summary(job))]
