"""A comparison on a real SLURM: preempted, killed, the controller restarted, and all of it comes to its end, once."""

import json
import os
import re
import shutil
import signal
import time

import pytest

from nnunet_glims.cli import main
from nnunet_glims.demo.phantom import write_raw_dataset
from nnunet_glims.experiments.executors.slurm import Slurm
from nnunet_glims.experiments.experiment import Experiment
from tests.experiments.conftest import run_local
from tests.preprocessed import TINY

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

COMPARISON = """\
title: Tiny
datasets: [123]
entries:
  - name: GLIMS
    trainer: nnUNetTrainerGLIMS
    override: GLIMS.json
  - name: LATUP-Net
    trainer: nnUNetTrainerLATUPNet
    override: LATUPNet.json
folds: [0, 1]
device: cpu
resources: {gpus: 0, cpus: 1, memory_gb: 4, hours: 1}
slurm: {signal_seconds: 30, array_size: 3}
"""
EPOCHS = 6


@pytest.fixture
def experiment(tmp_path, monkeypatch, cluster):
    """Two entries and two folds of a generated data set, trained for a few short epochs."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for name, value in {
        "SLURM_CONF": str(cluster.configuration),
        "OMP_NUM_THREADS": "1",
        "nnUNet_def_n_proc": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    write_raw_dataset(tmp_path / "raw", "Dataset123_Mine", cases=6, test_cases=0, shape=(32, 36, 30))
    training = {"epochs": EPOCHS, "iterations_per_epoch": 5, "validation_iterations": 1, "augmentation": "none"}
    for network in ("GLIMS", "LATUPNet"):
        override = {
            "description": "tiny",
            "source": "ours",
            "network": network,
            "network_arguments": TINY[network],
            "patch_size": [16, 16, 16],
            "batch_size": 2,
            "training": training,
        }
        (tmp_path / f"{network}.json").write_text(json.dumps(override))
    (tmp_path / "tiny.yaml").write_text(COMPARISON)
    yield Experiment(tmp_path / "tiny.yaml")
    cluster.run("scancel", "--user", "root")


def run(experiment):
    return main(["compare", "run", str(experiment.layout.path), "--executor", "slurm"])


def wait_until(reached, seconds, experiment, cluster):
    for _ in range(2 * seconds):
        if reached():
            return
        time.sleep(0.5)
    logs = {job.name: job.folder.log.read_text()[-500:] for job in experiment.jobs.values() if job.folder.log.exists()}
    pytest.fail(f"waited in vain: {cluster.run('squeue')}\n{logs}")


def epochs(experiment, job):
    """Numbers of the epochs that were trained, in order, over all starts."""
    text = "".join(path.read_text() for path in sorted(job.fold_folder.glob("training_log*.txt"), key=os.path.getmtime))
    return [int(number) for number in re.findall(r": Epoch (\d+)", text)]


def outcome(experiment):
    """What a comparison leaves: files, with the times in their names left out, epochs of trainings, cases of tables."""
    files = {
        re.sub(r"training_log_[\d_]+", "training_log", str(path.relative_to(folder)))
        for folder in (experiment.layout.results, experiment.layout.state / "report")
        for path in folder.rglob("*")
        if path.is_file()
    }
    trained = {
        job.name: sorted(set(epochs(experiment, job))) for job in experiment.jobs.values() if job.kind == "train"
    }
    tables = [(job.evaluation / "summary.json") for job in experiment.jobs.values() if job.kind == "evaluate"]
    return files, trained, [json.loads(table.read_text())["cases"] for table in tables]


def undisturbed(experiment, folder, monkeypatch):
    """The same comparison, run locally with the data that are preprocessed already."""
    folder.mkdir()
    for path in [experiment.layout.path, *experiment.layout.path.parent.glob("*.json")]:
        shutil.copy(path, folder)
    monkeypatch.setenv("nnUNet_results", str(folder / "results"))
    other = Experiment(folder / experiment.layout.path.name)
    assert run_local(other, print, parallel=2) == []
    return other


@pytest.mark.timeout(1500)  # minutes where little else runs
def test_preempted_killed_and_the_controller_restarted(experiment, cluster, tmp_path, monkeypatch):
    trainings = [job for job in experiment.jobs.values() if job.kind == "train"]
    assert run(experiment) == 0
    queued = Slurm(experiment).in_queue()
    assert set(queued) == set(experiment.jobs)
    arrays = {Slurm(experiment).submitted()[job.name].partition("_")[0] for job in trainings}
    assert len(arrays) == 2, "of at most three jobs"
    assert run(experiment) == 0, "a second run submits nothing"
    assert Slurm(experiment).in_queue().keys() == queued.keys()

    wait_until(lambda: any(len(epochs(experiment, job)) > 2 for job in trainings), 400, experiment, cluster)
    preempted = next(job for job in trainings if len(epochs(experiment, job)) > 2)
    cluster.signal("USR1", Slurm(experiment).submitted()[preempted.name])
    cluster.stop_one("slurmctld")
    cluster.start_controller()

    others = [job for job in trainings if job is not preempted]
    wait_until(
        lambda: any(len(epochs(experiment, job)) > 1 and not experiment.is_done(job) for job in others),
        400,
        experiment,
        cluster,
    )
    killed = next(job for job in others if len(epochs(experiment, job)) > 1 and not experiment.is_done(job))
    os.kill(killed.folder.read().child.pid, signal.SIGKILL)

    wait_until(lambda: not Slurm(experiment).in_queue(), 420, experiment, cluster)
    unfinished = {
        job.name: job.folder.log.read_text()[-800:] for job in experiment.jobs.values() if not experiment.is_done(job)
    }
    assert not unfinished
    for job in trainings:
        trained = epochs(experiment, job)
        assert sorted(set(trained)) == list(range(EPOCHS))
        if job is preempted:
            assert len(trained) == EPOCHS + 1, "only the epoch that was interrupted is trained again"
        elif job is not killed:
            assert trained == list(range(EPOCHS))
    splits = json.loads((experiment.layout.preprocessed / "Dataset123_Mine/splits_final.json").read_text())
    for name in ("evaluate_D123_GLIMS", "evaluate_D123_LATUP-Net"):
        summary = json.loads((experiment.jobs[name].evaluation / "summary.json").read_text())
        assert summary["cases"] == len(splits[0]["val"]) + len(splits[1]["val"])
        assert summary["missing_predictions"] == []
    assert (experiment.layout.report(123) / "leaderboard.html").exists()
    assert run(experiment) == 0
    assert not Slurm(experiment).in_queue(), "nothing is left to do"
    assert outcome(experiment) == outcome(undisturbed(experiment, tmp_path / "undisturbed", monkeypatch))


def test_cancelled_jobs_leave_the_queue_and_a_lost_record_is_noticed(experiment, cluster, capsys):
    assert run(experiment) == 0
    record = experiment.layout.slurm_numbers
    kept = record.read_text()
    record.write_text("{ damaged\n")
    assert run(experiment) == 2
    assert "the file was damaged. Cancel them with scancel -n" in " ".join(capsys.readouterr().err.split())
    record.write_text(kept)
    assert main(["compare", "cancel", str(experiment.layout.path), "--executor", "slurm"]) == 0
    wait_until(lambda: not Slurm(experiment).in_queue(), 60, experiment, cluster)


def test_a_job_that_ends_before_it_begins_is_told(experiment, cluster, capsys):
    experiment.layout.path.write_text(COMPARISON.replace("array_size: 3", "setup: ['echo no such module; exit 3']"))
    assert main(["compare", "run", str(experiment.layout.path), "--executor", "slurm"]) == 0
    wait_until(lambda: not Slurm(experiment).in_queue(), 60, experiment, cluster)
    assert main(["compare", "status", str(experiment.layout.path), "--executor", "slurm"]) == 0
    assert "8 failed" in capsys.readouterr().out
    assert main(["compare", "logs", str(experiment.layout.path), "train_D123_GLIMS_fold0"]) == 0
    assert "no such module" in capsys.readouterr().out


def test_without_a_cluster_it_says_so(experiment, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert run(experiment) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
