"""Comparisons whose commands are stand-ins: they leave the files that nnU-Net would, and a line for each start."""

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

from nnunet_glims.experiments.executors.in_process import InProcess
from nnunet_glims.experiments.executors.local import Local
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.jobs.ensemble import Ensemble
from nnunet_glims.experiments.jobs.evaluate import Evaluate
from nnunet_glims.experiments.jobs.prepare import Prepare
from nnunet_glims.experiments.jobs.report import Report
from nnunet_glims.experiments.jobs.train import Train

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
    SPLITS = '[{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]'
    started, held, code, *made = sys.argv[1:]
    with open(started, "a") as file:
        file.write(f"{Path(made[0]).parent if made else '-'}\\n")
    print("working", flush=True)
    while held and not Path(held).exists():
        time.sleep(0.02)
    for name in made:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(SPLITS if name.endswith("splits_final.json") else "{}")
    sys.exit(int(code))
"""
UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
PLANS = {
    "dataset_name": "Dataset007_Toy",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "configurations": {
        "3d_fullres": {
            "data_identifier": "data",
            "patch_size": [8, 8, 8],
            "batch_size": 2,
            "spacing": [1.0, 1.0, 1.0],
            "median_image_size_in_voxels": [8.0, 8.0, 8.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "architecture": {"network_class_name": UNET, "arch_kwargs": {}, "_kw_requires_import": []},
        }
    },
}
DATASET_JSON = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "tumour": 1},
    "file_ending": ".nii.gz",
    "numTraining": 1,
}

KINDS = (Prepare, Train, Evaluate, Ensemble, Report)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's three folders, with an empty data set 7."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "raw/Dataset007_Toy").mkdir()
    (tmp_path / "raw/Dataset007_Toy/dataset.json").write_text(json.dumps(DATASET_JSON))
    return tmp_path


@pytest.fixture
def experiment(folders):
    """The experiment of COMPARISON."""
    path = folders / "toy.yaml"
    path.write_text(COMPARISON)
    return Experiment(path)


@pytest.fixture
def started(folders):
    """The file with a line for each command that was started."""
    return folders / "started.txt"


def stand_in_commands(script, started, held, codes):
    """A method that replaces the commands of jobs."""

    def commands(job):
        code = codes.get(job.name, 0)
        until = str(held.get(job.name, ""))
        return [[sys.executable, str(script), str(started), until, str(code), *([] if code else made(job))]]

    return commands


@pytest.fixture
def stand_ins(folders, started, monkeypatch):
    """Replaces the commands of all jobs; settings by job: the file whose existence it waits for, its exit code."""
    script = folders / "stand_in.py"
    script.write_text(textwrap.dedent(STAND_IN))
    held, codes = {}, {}
    for kind in KINDS:
        monkeypatch.setattr(kind, "commands", stand_in_commands(script, started, held, codes))
    return held, codes


def write_dataset(folder):
    """The files of a planned data set, where they are not there yet."""
    folder.mkdir(exist_ok=True)
    for name, content in (("nnUNetPlans.json", PLANS), ("dataset.json", DATASET_JSON)):
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(content))


def made(job):
    """What a job leaves when it is done."""
    if isinstance(job, Train):
        return [str(job.fold_folder / name) for name in ("checkpoint_final.pth", "validation/summary.json")]
    if isinstance(job, Prepare):
        folder = job.layout.dataset(job.dataset)
        write_dataset(folder)
        return [str(folder / name) for name in ("data/case.pkl", "splits_final.json")]
    return list(job.result)


class Machine:
    """nnU-Net's and our own commands as functions of this process, which leave files and are remembered in `ran`."""

    def __init__(self, folders):
        self.folders = folders
        self.path = folders / "toy.yaml"
        self.ran = []
        self.told = []

    @property
    def dataset(self):
        return self.folders / "preprocessed/Dataset007_Toy"

    def write(self, text):
        self.path.write_text(text)
        return Experiment(self.path)

    def run(self, again=(), adopt=False):
        """What `compare run` does; returns which jobs' commands ran."""
        experiment = Experiment(self.path)
        self.ran, self.told = [], []
        jobs = list(experiment.jobs.values())
        experiment.settle(jobs, again, adopt, self.told.append)
        failed = InProcess(experiment, self.call).submit(jobs, self.told.append)
        assert failed == [], self.told
        return self.ran

    def call(self, command):
        name = Path(command[0]).name
        if name == "nnUNetv2_plan_and_preprocess":
            self.ran.append("preprocess")
            write_dataset(self.dataset)
            touch(self.dataset / "data/case.pkl", "data")
            touch(self.dataset / "gt_segmentations/case.nii.gz", "truth")
        elif name == "nnUNetv2_train":
            plans, trainer = command[command.index("-p") + 1], command[command.index("-tr") + 1]
            self.ran.append(f"train {trainer} {command[3]}")
            model = self.folders / f"results/Dataset007_Toy/{trainer}__{plans}__{command[2]}"
            touch(model / "plans.json", (self.dataset / f"{plans}.json").read_text())
            touch(model / "dataset.json", (self.dataset / "dataset.json").read_text())
            for file in (
                "checkpoint_final.pth",
                "validation/summary.json",
                "validation/case.nii.gz",
                "validation/case.npz",
            ):
                touch(model / f"fold_{command[3]}/{file}", "{}")
        elif command[1] == "evaluate":
            out = Path(command[command.index("-o") + 1] if "-o" in command else f"{command[3]}/evaluation")
            self.ran.append(f"evaluate {out.name if '-o' in command else out.parent.name}")
            touch(out / "summary.json", json.dumps(command))
        elif command[1] == "leaderboard":
            self.ran.append("report")
            touch(Path(command[command.index("-o") + 1]) / "leaderboard.html", "page")
        elif command[2].endswith("prepare_dataset"):
            self.ran.append("prepare")
            job = Experiment(self.path).jobs["prepare_D007"]
            for plans in job.plans:
                if plans.override is not None:
                    base = json.loads((self.dataset / f"{plans.entry.plans}.json").read_text())
                    base["configurations"]["3d_fullres"]["training"] = plans.override["training"]
                    content = json.dumps({**base, "plans_name": plans.name})
                    old = plans.path(7).read_text() if plans.path(7).exists() else content
                    assert old == content or "--overwrite" in command
                    touch(plans.path(7), content)
            if not (self.dataset / "splits_final.json").exists():
                touch(
                    self.dataset / "splits_final.json",
                    json.dumps([{"train": [], "val": [str(fold)]} for fold in range(5)]),
                )
        else:
            assert command[2].endswith("ensemble_predictions")
            self.ran.append("ensemble")
        return 0


@pytest.fixture
def machine(folders, monkeypatch):
    """Runs comparisons in this process; the data set has an image. Nothing waits for the disk."""
    monkeypatch.setattr("nnunet_glims.files.sync", lambda path: None)
    for name in ("imagesTr/case_0000.nii.gz", "labelsTr/case.nii.gz", "dataset.json"):
        touch(folders / "raw/Dataset007_Toy" / name, "{}")
    return Machine(folders)


def touch(path, content="{}"):
    """Write a file, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(content)
    if path.stat().st_mtime_ns <= before:  # the clock of the file system is coarse
        os.utime(path, ns=(before + 1, before + 1))


def run_local(experiment, tell, chosen=None, parallel=None):
    """Run all jobs, or those of some names, on this machine; returns the names of those that failed."""
    jobs = [job for job in experiment.jobs.values() if chosen is None or job.name in chosen]
    return Local(experiment, parallel).submit(jobs, tell)
