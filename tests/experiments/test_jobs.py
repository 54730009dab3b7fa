"""The jobs of a comparison, their proofs and their commands."""

import json
import re
import time
import tracemalloc

import pytest

from nnunet_glims.cli import main
from nnunet_glims.errors import UsageError
from nnunet_glims.experiments import slurm
from nnunet_glims.experiments.jobs import Plan
from nnunet_glims.experiments.status import status_of
from nnunet_glims.nnunet.plans.override import load_override
from tests.experiments.conftest import COMPARISON, made
from tests.preprocessed import dataset_json, make_plans


def write(folders, text):
    path = folders / "toy.yaml"
    path.write_text(text)
    return Plan(path)


def touch(path, content="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_jobs_and_what_they_need(plan):
    assert list(plan.jobs) == [
        "prepare_D007",
        "train_D007_GLIMS_fold0",
        "train_D007_GLIMS_fold1",
        "evaluate_D007_GLIMS",
        "train_D007_nnU-Net_fold0",
        "train_D007_nnU-Net_fold1",
        "evaluate_D007_nnU-Net",
        "report_D007",
    ]
    assert plan.jobs["evaluate_D007_GLIMS"].needs == ("train_D007_GLIMS_fold0", "train_D007_GLIMS_fold1")
    seen = set()
    for job in plan.jobs.values():
        assert seen >= set(job.needs)
        seen.add(job.name)


def test_a_job_is_done_when_its_files_are_there(plan):
    for job in plan.jobs.values():
        assert not plan.is_done(job)
        for name in made(plan, job):
            assert not plan.is_done(job), "every file is needed"
            touch(plan.path.parent / name)
        assert plan.is_done(job), job.name


def test_what_is_older_than_what_it_was_made_of_is_not_done(plan):
    for job in plan.jobs.values():
        for name in made(plan, job):
            touch(plan.path.parent / name)
    time.sleep(0.02)
    touch(plan.fold(plan.jobs["train_D007_GLIMS_fold1"]) / "validation/summary.json")
    again = [job.name for job in plan.jobs.values() if not plan.is_done(job)]
    assert again == ["evaluate_D007_GLIMS"]
    touch(plan._summary(plan.jobs["evaluate_D007_GLIMS"]))
    assert [job.name for job in plan.jobs.values() if not plan.is_done(job)] == ["report_D007"]


def test_trainings_are_nnunets_own_command(plan):
    (command,) = plan.commands(plan.jobs["train_D007_nnU-Net_fold1"])
    assert command == [
        "nnUNetv2_train", "Dataset007_Toy", "3d_fullres", "1", "-tr", "nnUNetTrainer", "-p", "nnUNetPlans",
        "-device", "cpu", "--c",
    ]  # fmt: skip


def test_several_gpus_and_what_slurm_is_asked_for(folders):
    resources = "resources: {gpus: 2, cpus: 4, memory_gb: 16, hours: 1.5}\n"
    settings = "slurm: {partition: gpu, gpu_type: a100, at_once: 20, additional: {account: mine}}\n"
    plan = write(folders, COMPARISON.replace("device: cpu", "device: cuda") + resources + settings)
    (command,) = plan.commands(plan.jobs["train_D007_GLIMS_fold0"])
    assert command[command.index("-num_gpus") + 1] == "2"
    asked = slurm._parameters(plan, "train", ["12", "13"], 2)
    assert (asked["gres"], asked["dependency"], asked["partition"]) == ("gpu:a100:2", "afterany:12:13", "gpu")
    assert (asked["time"], asked["cpus_per_task"], asked["mem"]) == (90, 4, "16384MB")
    assert asked["array_parallelism"] == 10, "of each of two arrays"
    assert asked["additional_parameters"] == {"requeue": True, "account": "mine"}
    assert "gres" not in slurm._parameters(plan, "evaluate", [], 1)


def test_ensembles_need_probabilities(folders):
    plan = write(folders, COMPARISON + "ensembles: [[GLIMS, nnU-Net]]\n")
    training = plan.jobs["train_D007_GLIMS_fold0"]
    assert plan.commands(training)[0][-1] == "--npz"
    for name in made(plan, training):
        touch(plan.path.parent / name)
    assert not plan.is_done(training)
    touch(plan.fold(training) / "validation/case.npz")
    assert plan.is_done(training)
    assert "ensemble_D007_GLIMS+nnU-Net" in plan.jobs["report_D007"].needs


def test_seeds_and_settings_give_plans_of_their_own(folders):
    text = COMPARISON.replace("  - name: nnU-Net\n    trainer: nnUNetTrainer\n", "") + "seeds: [1, 2]\n"
    text = text.replace(
        "nnUNetTrainerGLIMS\n", "nnUNetTrainerGLIMS\n    override: glims_brats\n    training: {epochs: 3}\n"
    )
    plan = write(folders, text)
    names = [plan.plans_name(entry, seed) for entry in plan.comparison.entries for seed in (1, 2)]
    assert names == ["nnUNetPlans_toy_GLIMS_seed1", "nnUNetPlans_toy_GLIMS_seed2"]
    written = [load_override(path)[1] for _, path in plan.overrides()]
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


def test_ten_thousand_jobs_are_planned_and_looked_at_in_two_seconds(folders, capsys):
    entries = "\n".join(f"  - {{name: E{number}, trainer: nnUNetTrainerGLIMS}}" for number in range(40))
    text = f"datasets: [7]\nentries:\n{entries}\nseeds: [{', '.join(map(str, range(1, 43)))}]\n"
    path = folders / "large.yaml"
    path.write_text(text)
    tracemalloc.start()
    started = time.perf_counter()
    plan = Plan(path)
    jobs = len(plan.jobs)
    statuses = status_of(plan)
    seconds = time.perf_counter() - started
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert jobs > 10_000 and len(statuses) == jobs
    assert seconds < 10, "with tracemalloc, which makes it several times slower"
    assert memory < 60e6
    for action, shown in (("plan", "8400"), ("status", f"{jobs} waiting")):
        started = time.process_time()  # of this process only, whatever else runs here
        assert main(["compare", action, str(path)]) == 0
        assert time.process_time() - started < 1.5
        assert shown in capsys.readouterr().out
    assert not plan.state.exists()


def test_plan_shows_steps(folders, capsys):
    write(folders, COMPARISON)
    assert main(["compare", "plan", str(folders / "toy.yaml")]) == 0
    out = capsys.readouterr().out
    assert "Dataset007_Toy GLIMS: 2 trainings of 250,000 steps" in out
    assert json.dumps("train")[1:-1] in out and "4" in out
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
    touch(folder / "nnUNetPlans.json", json.dumps(make_plans(patch_size=(16, 16, 16))))
    touch(folder / "dataset.json", json.dumps(dataset_json()))
    assert main(["compare", "plan", str(folders / "toy.yaml"), "--timing"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " GLIMS:" in line]
    seconds, hours = (float(number) for number in re.search(r"([\d.]+) s a step here, ([\d.]+) h each", line).groups())
    assert hours == pytest.approx(seconds * (250 + 50 / 3), rel=0.03), (
        "3600 epochs: as many hours as an epoch has seconds"
    )
