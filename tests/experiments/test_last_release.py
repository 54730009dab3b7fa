"""A comparison that release 0.1.0 ran, as it lies on the disks of its users; weights and label maps are stood in for."""

import shutil
from pathlib import Path

import pytest

from nnunet_glims.cli import main
from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.state import TrainingRecord

COMMITTED = Path(__file__).parents[1] / "golden/comparison_0.1.0"
MODELS = {
    "GLIMS": "nnUNetTrainerGLIMS__nnUNetPlans_tinyg__3d_fullres",
    "LATUP-Net": "nnUNetTrainerLATUPNet__nnUNetPlans_tinyl__3d_fullres",
}


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The comparison's file, with nnU-Net's variables set to the folders beside it."""
    shutil.copytree(COMMITTED, tmp_path, dirs_exist_ok=True)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "raw/Dataset907_Toy").mkdir(parents=True)
    preprocessed = tmp_path / "preprocessed/Dataset907_Toy/nnUNetPlans_3d_fullres"
    preprocessed.mkdir()
    for number in range(5):
        (preprocessed / f"phantom_{number:03}.pkl").touch()
    for model in MODELS.values():
        fold = tmp_path / "results/Dataset907_Toy" / model / "fold_0"
        for name in ("checkpoint_final.pth", "validation/phantom_000.nii.gz"):
            (fold / name).write_bytes(b"stand-in")
    return tmp_path / "toy.yaml"


def adopt(path):
    experiment, told = Experiment(path), []
    experiment.settle(list(experiment.jobs.values()), (), True, told.append)
    return experiment, told


def test_nothing_is_run_on_top_of_it_unasked(old):
    experiment = Experiment(old)
    with pytest.raises(UsageError, match="--adopt") as refused:
        experiment.settle(list(experiment.jobs.values()), (), False, print)
    for name in MODELS:
        assert f"train_D907_{name}_fold0" in str(refused.value)


def test_its_trainings_are_taken_and_nothing_is_trained_again(old):
    experiment, told = adopt(old)
    for name, model in MODELS.items():
        assert any(line.startswith(f"train_D907_{name}_fold0: adopted") for line in told)
        assert TrainingRecord.read(old.parent / "results/Dataset907_Toy" / model / "fold_0").adopted
    undone = {job.kind for job in experiment.jobs.values() if not experiment.is_done(job)}
    assert undone == {"prepare", "evaluate", "report"}


def test_its_plans_are_compared_with_what_the_file_asks_for_now(old):
    override = old.parent / "tinyg.json"
    override.write_text(override.read_text().replace('"iterations_per_epoch": 2', '"iterations_per_epoch": 3'))
    with pytest.raises(UsageError, match=r"(?s)iterations_per_epoch.*2.*3"):
        adopt(old)


def test_a_leaderboard_reads_its_tables(old):
    results = old.parent / "results/Dataset907_Toy"
    entries = [f"{name}={results / model}/evaluation" for name, model in MODELS.items()]
    assert main(["leaderboard", *entries, "-o", str(old.parent / "board")]) == 0
    assert all(name in (old.parent / "board/leaderboard.csv").read_text() for name in MODELS)
