"""Comparisons of real trainings: one that is killed while it writes a checkpoint, and nnU-Net's ensemble of two."""

import json
import re
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from nnunet_glims.cli import main
from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.executors.in_process import InProcess
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.state import TrainingRecord
from nnunet_glims.nnunet.checkpoints import is_intact
from tests.experiments.conftest import run_local

from . import DATASET, PLANS, child_environment, tiny_override

pytestmark = pytest.mark.slow

COMPARISON = """\
title: Real
datasets: [901]
folds: [0, 1]
device: cpu
resources: {gpus: 0, cpus: 1}
"""
KILLED = """
    import os, signal
    from pathlib import Path
    import torch
    from nnunet_glims.trainers import nnUNetTrainerGLIMS

    save = torch.save
    torn = Path(__file__).with_name("torn")

    def tear(checkpoint, file):
        save(checkpoint, file)
        os.truncate(file, os.path.getsize(file) // 2)
        torn.write_text(file)
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    class nnUNetTrainerGLIMSKilled(nnUNetTrainerGLIMS):
        def save_checkpoint(self, filename):
            if filename.endswith("latest.pth") and self.current_epoch == 1 and not torn.exists():
                torch.save = tear
            super().save_checkpoint(filename)
"""


@pytest.fixture
def write(fold_0, tmp_path, monkeypatch):
    """A function that makes a comparison of some entries; nnU-Net's variables are set."""
    for name, value in child_environment(fold_0).items():
        monkeypatch.setenv(name, value)

    def make(content):
        path = tmp_path / "real.yaml"
        path.write_text(COMPARISON + content)
        return Experiment(path)

    return make


@pytest.mark.long
def test_killed_with_its_worker_in_the_middle_of_a_checkpoint(write, tmp_path, monkeypatch):
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/killed.py").write_text(textwrap.dedent(KILLED))
    (tmp_path / "killed.json").write_text(json.dumps(tiny_override("GLIMS", epochs=3, checkpoint_interval=1)))
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    experiment = write("entries: [{name: GLIMS, trainer: nnUNetTrainerGLIMSKilled, override: killed.json}]\n")
    job = experiment.jobs["train_D901_GLIMS_fold0"]
    told = []
    assert run_local(experiment, told.append, chosen={"prepare_D901", job.name}) == []
    torn = Path((tmp_path / "trainers/torn").read_text())
    assert torn.name == "checkpoint_latest.pth" and torn.parent.name.startswith(".checkpoint_latest.pth.")
    assert f"{job.name}: was interrupted, goes on" in told
    fold = job.fold_folder
    log = "".join(path.read_text() for path in sorted(fold.glob("training_log*")))
    assert re.findall(r": Epoch (\d+)", log) == ["0", "1", "1", "2"], "only what was not saved is trained again"
    assert sorted(path.name for path in fold.glob("checkpoint*")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    assert all(is_intact(path) for path in fold.glob("checkpoint*"))
    final = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert {len(values) for values in final["logging"].values()} == {3}
    assert experiment.is_done(job)


def test_an_ensemble_of_entries(five_folds, write, capsys):
    experiment = write(
        f"entries:\n  - {{name: GLIMS, trainer: nnUNetTrainerGLIMS, plans: {PLANS}}}\n"
        f"  - {{name: LATUP-Net, trainer: nnUNetTrainerLATUPNet, plans: {PLANS}}}\n"
        "ensembles: [[GLIMS, LATUP-Net]]\n"
    )
    jobs = list(experiment.jobs.values())
    with pytest.raises(UsageError, match="--adopt"):
        experiment.check(jobs)
    for training in (job for job in jobs if job.kind == "train"):  # the plans file was replaced between the trainings
        now = training.ingredients(training.commands())
        TrainingRecord(ingredients=now, comparison="", adopted=True, written=0).write(training.fold_folder)
    told = []
    assert InProcess(experiment).submit(jobs, told.append) == [], told
    assert main(["compare", "status", str(experiment.layout.path)]) == 0
    assert f"{len(jobs)} done" in capsys.readouterr().out
    job = experiment.jobs["ensemble_D901_GLIMS+LATUP-Net"]
    raw = Path(five_folds["nnUNet_raw"], DATASET)
    order = json.loads((raw / "dataset.json").read_text())["regions_class_order"]
    cases = 0
    for fold in (0, 1):
        members = [experiment.jobs[f"train_D901_{name}_fold{fold}"].fold_folder for name in ("GLIMS", "LATUP-Net")]
        for path in (members[0] / "validation").glob("*.npz"):
            mean = np.mean([np.load(member / "validation" / path.name)["probabilities"] for member in members], axis=0)
            expected = np.zeros(mean.shape[1:], int)
            for label, region in zip(order, mean, strict=True):
                expected[region > 0.5] = label
            clear = (np.abs(mean - 0.5) > 1e-3).all(axis=0)
            made = np.asarray(nibabel.load(job.predictions / f"{path.stem}.nii.gz").dataobj).T
            np.testing.assert_array_equal(made[clear], expected[clear])
            cases += 1
    assert cases == 4
    assert json.loads((job.evaluation / "summary.json").read_text())["cases"] == cases
    assert "GLIMS+LATUP-Net" in (experiment.layout.report(901) / "leaderboard.html").read_text()
