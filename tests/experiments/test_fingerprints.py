"""Done means what was asked: each ingredient of each kind of job, changed alone, is seen."""

import json
import os
import re
import shutil

import pytest

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.evaluation import results
from nnunet_glims.experiments import interim_report, prepare_dataset
from nnunet_glims.experiments.executors.in_process import InProcess
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.jobs.ensemble import Ensemble
from nnunet_glims.experiments.jobs.evaluate import Evaluate
from nnunet_glims.experiments.jobs.prepare import Prepare
from nnunet_glims.experiments.jobs.report import Report
from nnunet_glims.experiments.jobs.train import Train
from nnunet_glims.experiments.state import TrainingRecord
from nnunet_glims.locks import lock
from tests.experiments.conftest import DATASET_JSON, PLANS, touch

COMPARISON = """\
title: Toy
datasets: [7]
entries:
  - name: GLIMS
    trainer: nnUNetTrainerGLIMS
    training: {epochs: 300}
  - name: nnU-Net
    trainer: nnUNetTrainer
folds: [0, 1]
device: cpu
ensembles: [[GLIMS, nnU-Net]]
"""
GLIMS = "results/Dataset007_Toy/nnUNetTrainerGLIMS__nnUNetPlans_toy_GLIMS__3d_fullres"
TABLES = ["evaluate D007_GLIMS", "evaluate D007_nnU-Net", "ensemble", "evaluate D007_GLIMS+nnU-Net", "report"]


@pytest.fixture
def done(machine):
    """A comparison that is done."""
    machine.write(COMPARISON)
    assert machine.run()[-1] == "report"
    return machine


def edited(before, after):
    def change(machine, monkeypatch):
        text = machine.path.read_text()
        assert before in text
        machine.path.write_text(text.replace(before, after))

    return change


def rewritten(name, content="other"):
    return lambda machine, monkeypatch: touch(machine.folders / name, content)


def another_version(kind):
    return lambda machine, monkeypatch: monkeypatch.setattr(kind, "method_version", 2)


def another_command(kind):
    def change(machine, monkeypatch):
        commands = kind.commands
        monkeypatch.setattr(kind, "commands", lambda job: [[*command, "--new"] for command in commands(job)])

    return change


def other_plans(name, **settings):
    def change(machine, monkeypatch):
        path = machine.dataset / f"{name}.json"
        plans = json.loads(path.read_text())
        plans["configurations"]["3d_fullres"].update(settings)
        path.write_text(json.dumps(plans))

    return change


def other_planning(machine, monkeypatch):
    planning = Prepare._planning
    monkeypatch.setattr(Prepare, "_planning", lambda job, *names: [*planning(job, *names), "-gpu_memory_target", "20"])


def other_precision(machine, monkeypatch):
    monkeypatch.setenv("NNUNET_GLIMS_PRECISION", "bf16")


def other_metrics(machine, monkeypatch):
    monkeypatch.setattr(results, "METHOD_VERSION", 99, raising=False)


def other_split(machine, monkeypatch):
    splits = json.loads((machine.dataset / "splits_final.json").read_text())
    splits[1] = {"train": [], "val": ["other"]}
    (machine.dataset / "splits_final.json").write_text(json.dumps(splits))


def test_undisturbed_nothing_runs(done):
    assert done.run() == []


def test_how_fast_it_runs_is_no_ingredient(done):
    edited("device: cpu", "device: cpu\nresources: {cpus: 2, memory_gb: 4}\nparallel: 2")(done, None)
    assert done.run() == []


ENSEMBLE = ["ensemble", "evaluate D007_GLIMS+nnU-Net", "report"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (edited("device: cpu", "device: cpu\nevaluation: brats2021"), TABLES),
        (edited("folds: [0, 1]", "folds: [0]"), TABLES),
        (other_metrics, TABLES),
        (rewritten("preprocessed/Dataset007_Toy/gt_segmentations/case.nii.gz"), TABLES),
        (another_command(Evaluate), [*TABLES[:2], "report"]),
        (another_version(Evaluate), [*TABLES[:2], "report"]),
        (rewritten(f"{GLIMS}/fold_1/validation/case.nii.gz"), [TABLES[0], "report"]),
        (rewritten(f"{GLIMS}/dataset.json"), [TABLES[0], "report"]),
        (another_command(Ensemble), ENSEMBLE),
        (another_version(Ensemble), ENSEMBLE),
        (rewritten(f"{GLIMS}/fold_1/validation/case.npz"), [TABLES[0], *ENSEMBLE]),
        (another_command(Report), ["report"]),
        (another_version(Report), ["report"]),
        (edited("title: Toy", "title: Other"), ["report"]),
        (rewritten("toy.run/evaluations/D007_GLIMS/summary.json"), ["report"]),
    ],
)
def test_tables_and_pages_are_made_again(done, monkeypatch, change, again):
    change(done, monkeypatch)
    assert done.run() == again
    assert done.run() == []


PLANS_OF_GLIMS = "nnUNetPlans_toy_GLIMS"


@pytest.mark.parametrize(
    ("change", "job", "message"),
    [
        (edited("epochs: 300", "epochs: 1000"), "prepare_D007", r"training.epochs: 300 when it was made, 1000 now"),
        (edited("epochs: 300", "epochs: 1000"), "train_D007_GLIMS_fold1", r"training.epochs: 300 when it was made, 1000 now"),
        (rewritten("raw/Dataset007_Toy/imagesTr/case_0000.nii.gz"), "prepare_D007", "imagesTr.names and sizes: "),
        (rewritten("raw/Dataset007_Toy/labelsTr/case.nii.gz"), "prepare_D007", "labelsTr.names and sizes: "),
        (rewritten("raw/Dataset007_Toy/dataset.json"), "prepare_D007", "dataset.json: "),
        (other_plans("nnUNetPlans", patch_size=[16, 8, 8]), "prepare_D007", "plans nnUNetPlans: "),
        (another_version(Prepare), "prepare_D007", "method version: 1 when it was made, 2 now"),
        (other_planning, "prepare_D007", r"planning of 3d_fullres\..*-gpu_memory_target: absent when it was made, ..20.. now"),
        (edited("device: cpu", "device: mps"), "train_D007_GLIMS_fold0",
         r"-device: \[.*cpu.*\] when it was made, \[.*mps.*\] now"),
        (other_precision, "train_D007_GLIMS_fold0", 'precision: "auto" when it was made, "bf16" now'),
        (another_version(Train), "train_D007_GLIMS_fold0", "method version: 1 when it was made, 2 now"),
        (another_command(Train), "train_D007_GLIMS_fold0", r"command\.nnUNetv2_train\.--new: absent .*, \[\] now"),
        (other_plans(PLANS_OF_GLIMS, batch_size=4), "train_D007_GLIMS_fold0", "batch_size: 2 when it was made, 4 now"),
        (other_split, "train_D007_GLIMS_fold1", "split: "),
        (rewritten("preprocessed/Dataset007_Toy/dataset.json", json.dumps({**DATASET_JSON, "x": 1})), "train_D007_GLIMS_fold0",
         "dataset.json: "),
        (rewritten("preprocessed/Dataset007_Toy/data/case.pkl"), "train_D007_GLIMS_fold0",
         "preprocessed data.names and sizes: "),
    ],
)  # fmt: skip
def test_plans_data_and_trainings_are_refused_with_both_values(done, monkeypatch, change, job, message):
    change(done, monkeypatch)
    with pytest.raises(UsageError) as error:
        done.run()
    assert done.ran == []
    assert re.search(rf"{job}: .*{message}", str(error.value)), str(error.value)
    assert re.search(rf"--again .*\b{job}\b", str(error.value)), "the way out"


def test_a_refused_training_is_made_again_and_the_old_one_stays(done):
    edited("epochs: 300", "epochs: 1000")(done, None)
    jobs = ["prepare_D007", "train_D007_GLIMS_fold0", "train_D007_GLIMS_fold1"]
    touch(done.folders / GLIMS / "fold_0/mine.txt", "kept")
    ran = done.run(again=jobs)
    assert ran[:3] == ["prepare", "train nnUNetTrainerGLIMS 0", "train nnUNetTrainerGLIMS 1"]
    assert "preprocess" not in ran, "only a recipe has changed"
    assert json.loads((done.folders / GLIMS / "plans.json").read_text())["configurations"]["3d_fullres"][
        "training"
    ] == {"epochs": 1000}
    (kept,) = (done.folders / GLIMS / "replaced").glob("fold_0_*/mine.txt")
    assert kept.read_text() == "kept" and str(kept.parent) in " ".join(done.told)
    assert done.run() == []


def test_a_new_name_is_another_way_out(done):
    edited("name: GLIMS\n", "name: longer\n")(done, None)
    edited("[GLIMS, nnU-Net]", "[longer, nnU-Net]")(done, None)
    edited("epochs: 300", "epochs: 1000")(done, None)
    assert done.run()[:3] == ["prepare", "train nnUNetTrainerGLIMS 0", "train nnUNetTrainerGLIMS 1"]
    assert (done.folders / GLIMS / "fold_0/checkpoint_final.pth").exists()


def test_entries_and_folds_may_be_added(done):
    edited("folds: [0, 1]", "folds: [0, 1, 2]")(done, None)
    ran = done.run()
    assert ran[:3] == ["train nnUNetTrainerGLIMS 2", "evaluate D007_GLIMS", "train nnUNetTrainer 2"]
    edited("folds:", "  - {name: more, trainer: nnUNetTrainerLATUPNet, training: {epochs: 5}}\nfolds:")(done, None)
    assert done.run() == [
        "prepare", *(f"train nnUNetTrainerLATUPNet {fold}" for fold in range(3)), "evaluate D007_more", "report",
    ]  # fmt: skip


def test_a_training_under_way_with_other_settings_is_refused(done):
    (done.folders / GLIMS / "fold_1/checkpoint_final.pth").rename(done.folders / GLIMS / "fold_1/checkpoint_latest.pth")
    edited("epochs: 300", "epochs: 1000")(done, None)
    with pytest.raises(UsageError, match="train_D007_GLIMS_fold1: .*epochs: 300 when it was made, 1000 now"):
        done.run()


def test_a_training_that_has_learned_nothing_is_not_refused(done):
    for fold in (0, 1):
        (done.folders / GLIMS / f"fold_{fold}/checkpoint_final.pth").unlink()
    edited("epochs: 300", "epochs: 1000")(done, None)
    with pytest.raises(UsageError) as error:
        done.run()
    assert "prepare_D007: override" in str(error.value) and "train_D007" not in str(error.value)
    assert "train nnUNetTrainerGLIMS 1" in done.run(again=["prepare_D007"])


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("preprocessed/Dataset007_Toy/data/case.pkl", "train_D007_GLIMS_fold0"),
        ("raw/Dataset007_Toy/labelsTr/case.nii.gz", "prepare_D007"),
    ],
)
def test_files_that_were_only_written_again_are_taken_when_the_user_says_so(done, name, job):
    path = done.folders / name
    os.utime(path, (1, 1))
    with pytest.raises(UsageError, match=rf"{job} \(.*were written again since\).*\n.*--adopt"):
        done.run()
    assert done.run(adopt=True) == []
    assert done.run() == []


def test_adoption_of_files_written_again_hides_no_other_change(done):
    os.utime(done.folders / "raw/Dataset007_Toy/imagesTr/case_0000.nii.gz", (1, 1))
    touch(done.folders / "raw/Dataset007_Toy/labelsTr/case.nii.gz", "labels of another size")
    with pytest.raises(UsageError, match="prepare_D007: labelsTr.names and sizes"):
        done.run(adopt=True)
    edited("epochs: 300", "epochs: 1000")(done, None)
    touch(done.folders / "raw/Dataset007_Toy/labelsTr/case.nii.gz", "{}")
    with pytest.raises(UsageError, match="training.epochs: 300 when it was made, 1000 now"):
        done.run(adopt=True)


def test_another_file_does_not_take_data_of_other_images(done):
    touch(done.folders / "raw/Dataset007_Toy/labelsTr/case.nii.gz", "labels of another size")
    text = done.path.read_text()
    done.path = done.folders / "copy.yaml"
    done.write(text)
    with pytest.raises(UsageError, match="prepare_D007: labelsTr.names and sizes"):
        done.run()
    assert done.ran == []


def test_what_is_to_be_made_again_is_remembered_through_an_interruption(done):
    touch(done.folders / "raw/Dataset007_Toy/labelsTr/case.nii.gz", "labels of another size")
    trainings = [name for name in Experiment(done.path).jobs if name.startswith("train")]
    experiment = Experiment(done.path)
    experiment.settle(
        list(experiment.jobs.values()), ["prepare_D007", *trainings], False, print
    )  # and then it was killed
    assert done.run()[:2] == ["preprocess", "prepare"]
    assert done.run() == []


def test_plans_of_another_comparison_are_not_replaced_with_those_that_shall_be(done):
    edited("epochs: 300", "epochs: 1000")(done, None)
    experiment = Experiment(done.path)
    trainings = [name for name in experiment.jobs if name.startswith("train")]
    experiment.settle(
        list(experiment.jobs.values()), ["prepare_D007", *trainings], False, print
    )  # and then it was killed
    text, first = done.path.read_text(), done.path
    done.path = done.folders / "second.yaml"
    command = done.write(text).jobs["prepare_D007"].commands()[-1]
    assert "--overwrite" not in command
    done.path = first
    assert "--overwrite" in Experiment(first).jobs["prepare_D007"].commands()[-1]
    assert done.run()[0] == "prepare"
    assert done.run() == []


def test_nothing_is_moved_where_something_is_refused(done):
    edited("device: cpu", "device: mps")(done, None)
    fold = done.folders / GLIMS / "fold_0"
    with pytest.raises(UsageError, match="train_D007_GLIMS_fold1: command"):
        done.run(again=["train_D007_GLIMS_fold0"])
    assert (fold / "checkpoint_final.pth").exists()


def test_plans_that_were_changed_by_hand_before_the_training_are_refused(machine):
    machine.write(COMPARISON)
    experiment = Experiment(machine.path)
    InProcess(experiment, machine.call).submit([experiment.jobs["prepare_D007"]], print)
    other_plans(PLANS_OF_GLIMS, training={"epochs": 5})(machine, None)
    with pytest.raises(UsageError, match=r"prepare_D007: written plans .*training.epochs: 300 when it was made, 5 now"):
        machine.run()


def test_a_file_that_was_changed_after_the_job_began_is_noticed_by_its_command(machine):
    experiment = machine.write(COMPARISON)
    (*_, command) = experiment.jobs["prepare_D007"].commands()
    edited("epochs: 300", "epochs: 1000")(machine, None)
    with pytest.raises(SystemExit, match="was changed after this job had begun"):
        prepare_dataset.main(command[3:])


NETWORK = "nnunet_glims.architectures.GLIMS"


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ({"network_class_name": "nnunet_glims.architectures.LATUPNet", "arch_kwargs": {}}, "network was .*LATUPNet"),
        ({"network_class_name": NETWORK, "arch_kwargs": {"feature_size": 12}}, "network arguments.feature_size was 12"),
        ({"network_class_name": NETWORK, "arch_kwargs": {"strides": [[1, 1, 1]]}}, "training was absent"),
    ],
)
def test_another_network_is_not_adopted(machine, trained, message):
    machine.write("datasets: [7]\nentries:\n  - {name: GLIMS, trainer: nnUNetTrainerGLIMS}\nfolds: [0]\ndevice: cpu\n")
    machine.run()
    model = machine.folders / "results/Dataset007_Toy/nnUNetTrainerGLIMS__nnUNetPlans__3d_fullres"
    (model / "fold_0/nnunet_glims_training.json").unlink()
    plans = json.loads(json.dumps(PLANS))
    plans["configurations"]["3d_fullres"]["architecture"] = trained
    touch(model / "plans.json", json.dumps(plans))
    with pytest.raises(UsageError, match=message):
        machine.run(adopt=True)
    plans["configurations"]["3d_fullres"]["architecture"] = {"network_class_name": NETWORK, "arch_kwargs": {}}
    plans["configurations"]["3d_fullres"]["training"] = {"epochs": 1000, "lr": 1e-3}
    touch(model / "plans.json", json.dumps(plans))
    machine.run(adopt=True)
    assert any("does not contradict" in line for line in machine.told)


def test_seeds_are_one_entry_of_the_leaderboard(machine):
    machine.write(
        COMPARISON.replace("  - name: nnU-Net\n    trainer: nnUNetTrainer\n", "").partition("ensembles")[0]
        + "seeds: [1, 2]\n"
    )
    (command,) = Experiment(machine.path).jobs["report_D007"].commands()
    assert [word.partition("=")[0] for word in command[2:4]] == ["GLIMS", "GLIMS"]


def test_two_comparisons_share_a_model_and_keep_their_own_tables(machine):
    text = "datasets: [7]\nentries:\n  - {name: nnU-Net, trainer: nnUNetTrainer}\nfolds: [0]\ndevice: cpu\n"
    machine.write(text)
    machine.run()
    machine.path = machine.folders / "second.yaml"
    machine.write(text + "evaluation: brats2021\n")
    assert machine.run() == ["prepare", "evaluate D007_nnU-Net", "report"], "the training is there"
    for name, preset in (("toy", "default"), ("second", "brats2021")):
        command = json.loads((machine.folders / f"{name}.run/evaluations/D007_nnU-Net/summary.json").read_text())
        assert command[command.index("--preset") + 1] == preset
        machine.path = machine.folders / f"{name}.yaml"
        assert machine.run() == []


def test_one_fold_is_not_trained_by_two_comparisons_at_once(done):
    job = Experiment(done.path).jobs["train_D007_GLIMS_fold0"]
    with (
        lock(job.fold_folder / ".nnunet_glims.lock", "training"),
        pytest.raises(
            ProcessingError, match=r"another process does this already \(user .*, process \d+ on .*, since 20"
        ),
        job.work(job.commands()),
    ):
        pytest.fail("it must not be reached")


LAST_RELEASE = "results/Dataset007_Toy/nnUNetTrainer__nnUNetPlans__3d_fullres"


def write_last_release(machine):
    """What release 0.x left: trained folds, tables in the model folder, marks in logs."""
    machine.write("datasets: [7]\nentries:\n  - {name: nnU-Net, trainer: nnUNetTrainer}\nfolds: [0]\ndevice: cpu\n")
    for name, content in (
        ("nnUNetPlans.json", PLANS),
        ("dataset.json", DATASET_JSON),
        ("splits_final.json", [{"train": ["a"], "val": ["b"]}]),
    ):
        touch(machine.dataset / name, json.dumps(content))
    touch(machine.dataset / "data/case.pkl")
    model = machine.folders / LAST_RELEASE
    touch(model / "plans.json", json.dumps(PLANS))
    for name in (
        "fold_0/checkpoint_final.pth",
        "fold_0/validation/summary.json",
        "evaluation/summary.json",
        "dataset.json",
    ):
        touch(model / name)
    touch(machine.folders / "toy.run/logs/train_D007_nnU-Net_fold0.log", "## done\n")
    return model


def test_results_of_the_last_release_are_taken_when_the_user_says_so(machine):
    model = write_last_release(machine)
    with pytest.raises(UsageError, match=r"train_D007_nnU-Net_fold0\. .*\n.*--adopt"):
        machine.run()
    assert machine.run(adopt=True) == ["prepare", "evaluate D007_nnU-Net", "report"]
    assert any(line.startswith("train_D007_nnU-Net_fold0: adopted") for line in machine.told)
    assert TrainingRecord.read(model / "fold_0").adopted
    assert machine.run() == []


def test_what_contradicts_its_plans_is_not_adopted(machine):
    model = write_last_release(machine)
    plans = json.loads(json.dumps(PLANS))
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 16]
    touch(model / "plans.json", json.dumps(plans))
    with pytest.raises(
        UsageError, match=r"patch_size was \[16, 16, 16\] when it was trained .* would be \[8, 8, 8\] now"
    ):
        machine.run(adopt=True)
    assert TrainingRecord.read(model / "fold_0") is None


def test_an_interim_report_names_the_entries_that_are_left_out(done, monkeypatch):
    trained = next((done.folders / "results/Dataset007_Toy").glob("nnUNetTrainer__*"))
    shutil.rmtree(trained / "fold_1")
    ran = {}
    monkeypatch.setattr(interim_report, "Step", lambda job, _, commands=(): lambda: ran.update({job.name: commands}))
    interim_report.report(Experiment(done.path), lambda text: None)
    (command,) = next(commands for name, commands in ran.items() if name.startswith("report"))
    notes = [command[place + 1] for place, option in enumerate(command) if option == "--note"]
    assert "Partial report: nnU-Net is left out, 1 of 2 trainings are not done." in notes
    assert "--intersection" in command and not any(option.startswith("nnU-Net=") for option in command)
