"""The jobs of a comparison, their proofs and their commands."""

import json
import re
import time
import tracemalloc

import pytest

from nnunet_glims.cli import main
from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.executors.local import Local
from nnunet_glims.experiments.executors.slurm import Slurm
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.state import TrainingRecord
from nnunet_glims.experiments.status import status_of
from nnunet_glims.nnunet.plans.override import load_override
from tests.experiments.conftest import COMPARISON, made
from tests.preprocessed import dataset_json, make_plans


def write(folders, text):
    path = folders / "toy.yaml"
    path.write_text(text)
    return Experiment(path)


def touch(path, content="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_jobs_and_what_they_need(experiment):
    assert list(experiment.jobs) == [
        "prepare_D007",
        "train_D007_GLIMS_fold0",
        "train_D007_GLIMS_fold1",
        "evaluate_D007_GLIMS",
        "train_D007_nnU-Net_fold0",
        "train_D007_nnU-Net_fold1",
        "evaluate_D007_nnU-Net",
        "report_D007",
    ]
    assert experiment.jobs["evaluate_D007_GLIMS"].needs == ("train_D007_GLIMS_fold0", "train_D007_GLIMS_fold1")
    seen = set()
    for job in experiment.jobs.values():
        assert seen >= set(job.needs)
        seen.add(job.name)


def test_a_training_without_one_of_its_files_is_not_done(machine):
    machine.write(COMPARISON)
    machine.run()
    training = Experiment(machine.path).jobs["train_D007_GLIMS_fold0"]
    for name in ("checkpoint_final.pth", "validation/summary.json"):
        path = training.fold_folder / name
        assert training.outcome().is_done
        content = path.read_bytes()
        path.unlink()
        assert training.outcome().state == "missing", "nothing refuses it: it goes on"
        path.write_bytes(content)


def test_trainings_are_nnunets_own_command(experiment):
    (command,) = experiment.jobs["train_D007_nnU-Net_fold1"].commands()
    assert command == [
        "nnUNetv2_train", "Dataset007_Toy", "3d_fullres", "1", "-tr", "nnUNetTrainer", "-p", "nnUNetPlans",
        "-device", "cpu", "--c",
    ]  # fmt: skip


def test_several_gpus_and_what_slurm_is_asked_for(folders):
    resources = "resources: {gpus: 2, cpus: 4, memory_gb: 16, hours: 1.5}\n"
    settings = "slurm: {partition: gpu, gpu_type: a100, at_once: 20, additional: {account: mine}}\n"
    experiment = write(folders, COMPARISON.replace("device: cpu", "device: cuda") + resources + settings)
    (command,) = experiment.jobs["train_D007_GLIMS_fold0"].commands()
    assert command[command.index("-num_gpus") + 1] == "2"
    asked = Slurm(experiment).parameters(True, ["12", "13"], 2)
    assert (asked["gres"], asked["dependency"], asked["partition"]) == ("gpu:a100:2", "afterany:12:13", "gpu")
    assert (asked["time"], asked["cpus_per_task"], asked["mem"]) == (90, 4, "16384MB")
    assert asked["array_parallelism"] == 10, "of each of two arrays"
    assert asked["additional_parameters"] == {"requeue": True, "account": "mine"}
    assert "gres" not in Slurm(experiment).parameters(False, [], 1)


def test_ensembles_need_probabilities(folders):
    experiment = write(folders, COMPARISON + "ensembles: [[GLIMS, nnU-Net]]\n")
    training = experiment.jobs["train_D007_GLIMS_fold0"]
    assert training.commands()[0][-1] == "--npz"
    for name in made(training):
        touch(experiment.layout.path.parent / name)
    record = TrainingRecord(ingredients=training.ingredients(training.commands()), comparison="", written=0)
    record.write(training.fold_folder)
    assert not experiment.is_done(training)
    touch(training.fold_folder / "validation/case.npz")
    assert experiment.is_done(training)
    assert "ensemble_D007_GLIMS+nnU-Net" in experiment.jobs["report_D007"].needs


def test_seeds_and_settings_give_plans_of_their_own(folders):
    text = COMPARISON.replace("  - name: nnU-Net\n    trainer: nnUNetTrainer\n", "") + "seeds: [1, 2]\n"
    text = text.replace(
        "nnUNetTrainerGLIMS\n", "nnUNetTrainerGLIMS\n    override: glims_brats\n    training: {epochs: 3}\n"
    )
    experiment = write(folders, text)
    names = [
        experiment.layout.plans_name(entry, seed) for entry in experiment.layout.comparison.entries for seed in (1, 2)
    ]
    assert names == ["nnUNetPlans_toy_GLIMS_seed1", "nnUNetPlans_toy_GLIMS_seed2"]
    written = [load_override(plans.written_override())[1] for plans in experiment.jobs["prepare_D007"].plans]
    published = load_override("glims_brats")[1]
    for seed, override in zip((1, 2), written):
        assert override.training == {**published.training, "epochs": 3, "seed": seed}
        assert override.patch_size == published.patch_size and override.network == "GLIMS"


def test_data_sets_that_are_not_there_are_named(folders, monkeypatch):
    with pytest.raises(UsageError, match="datasets: 8: there is no such data set"):
        write(folders, COMPARISON.replace("[7]", "[8]"))
    (folders / "raw/Dataset007_Other").mkdir()
    with pytest.raises(UsageError, match="2 data sets have that number"):
        write(folders, COMPARISON)
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(UsageError, match="nnUNet_results is not set"):
        write(folders, COMPARISON)


def test_ten_thousand_jobs_are_planned_and_looked_at_in_seconds(folders, capsys):
    entries = "\n".join(f"  - {{name: E{number}, trainer: nnUNetTrainerGLIMS}}" for number in range(40))
    text = f"datasets: [7]\nentries:\n{entries}\nseeds: [{', '.join(map(str, range(1, 43)))}]\n"
    path = folders / "large.yaml"
    path.write_text(text)
    tracemalloc.start()
    started = time.perf_counter()
    experiment = Experiment(path)
    jobs = len(experiment.jobs)
    statuses = status_of(Local(experiment))
    seconds = time.perf_counter() - started
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert jobs > 10_000 and len(statuses) == jobs
    assert seconds < 60, "with tracemalloc, which makes it several times slower"
    assert memory < 60e6
    for action, shown in (("plan", "8400"), ("status", f"{jobs} waiting")):
        started = time.process_time()  # of this process only, whatever else runs here
        assert main(["compare", action, str(path)]) == 0
        assert time.process_time() - started < 15, "looking at all jobs for each of them would take minutes"
        assert shown in capsys.readouterr().out
    assert not experiment.layout.state.exists()


def test_plan_shows_steps(folders, capsys):
    write(folders, COMPARISON)
    assert main(["compare", "plan", str(folders / "toy.yaml")]) == 0
    out = capsys.readouterr().out
    assert "Dataset007_Toy GLIMS: 2 trainings of 250,000 steps" in out
    assert json.dumps("train")[1:-1] in out
    assert "GLIMS: 2 trainings of 250,000 steps, about 3.4 GB of checkpoints" in out, "2 × 3 × 12 bytes × 47.16 M"
    assert "hours: with --timing" in out


@pytest.mark.slow
def test_plan_times_steps_of_planned_data_sets(folders, capsys):
    (folders / "raw/Dataset007_Toy/imagesTr").mkdir()
    touch(folders / "raw/Dataset007_Toy/imagesTr/case_0000.nii.gz", "x" * 4_000_000)
    text = COMPARISON.replace("nnUNetTrainerGLIMS", "nnUNetTrainerLATUPNet\n    training: {epochs: 3600}")
    text = text.replace("  - name: nnU-Net\n    trainer: nnUNetTrainer\n", "")
    write(folders, text)
    assert main(["compare", "plan", str(folders / "toy.yaml"), "--timing"]) == 0
    out = capsys.readouterr().out
    assert "Dataset007_Toy: about 10 MB of preprocessed images" in out
    assert "hours: when the data set is planned: nnUNetv2_plan_and_preprocess -d 7 -c 3d_fullres" in out
    folder = folders / "preprocessed/Dataset007_Toy"
    plans = make_plans(patch_size=(16, 16, 16))
    del plans["configurations"]["3d_fullres"]["training"]
    touch(folder / "nnUNetPlans.json", json.dumps(plans))
    touch(folder / "dataset.json", json.dumps(dataset_json()))
    assert main(["compare", "plan", str(folders / "toy.yaml"), "--timing"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " GLIMS:" in line]
    seconds, hours = (float(number) for number in re.search(r"([\d.]+) s a step here, ([\d.]+) h each", line).groups())
    # 3600 epochs: as many hours as an epoch of 250 and 50/3 steps has seconds; seconds are printed with two digits.
    assert hours / (250 + 50 / 3) == pytest.approx(seconds, abs=0.006)
