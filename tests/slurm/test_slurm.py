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
from nnunet_glims.experiments import slurm
from nnunet_glims.experiments.jobs import Plan
from nnunet_glims.experiments.local import run_local
from nnunet_glims.experiments.step import read_log
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
def plan(tmp_path, monkeypatch, cluster):
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
    yield Plan(tmp_path / "tiny.yaml")
    cluster.run("scancel", "--user", "root")


def run(plan):
    return main(["compare", "run", str(plan.path), "--executor", "slurm"])


def wait_until(reached, seconds, plan, cluster):
    for _ in range(2 * seconds):
        if reached():
            return
        time.sleep(0.5)
    logs = {job.name: plan.log(job).read_text()[-500:] for job in plan.jobs.values() if plan.log(job).exists()}
    pytest.fail(f"waited in vain: {cluster.run('squeue')}\n{logs}")


def epochs(plan, job):
    """Numbers of the epochs that were trained, in order, over all starts."""
    text = "".join(path.read_text() for path in sorted(plan.fold(job).glob("training_log*.txt"), key=os.path.getmtime))
    return [int(number) for number in re.findall(r": Epoch (\d+)", text)]


def outcome(plan):
    """What a comparison leaves: files, with the times in their names left out, epochs of trainings, cases of tables."""
    files = {
        re.sub(r"training_log_[\d_]+", "training_log", str(path.relative_to(folder)))
        for folder in (plan.results, plan.state / "report")
        for path in folder.rglob("*")
        if path.is_file()
    }
    trained = {job.name: sorted(set(epochs(plan, job))) for job in plan.jobs.values() if job.kind == "train"}
    tables = [plan._summary(job) for job in plan.jobs.values() if job.kind == "evaluate"]
    return files, trained, [json.loads(table.read_text())["cases"] for table in tables]


def undisturbed(plan, folder, monkeypatch):
    """The same comparison, run locally with the data that are preprocessed already."""
    folder.mkdir()
    for path in [plan.path, *plan.path.parent.glob("*.json")]:
        shutil.copy(path, folder)
    monkeypatch.setenv("nnUNet_results", str(folder / "results"))
    other = Plan(folder / plan.path.name)
    assert run_local(other, print, parallel=2) == []
    return other


@pytest.mark.timeout(1500)  # minutes where little else runs
def test_preempted_killed_and_the_controller_restarted(plan, cluster, tmp_path, monkeypatch):
    trainings = [job for job in plan.jobs.values() if job.kind == "train"]
    assert run(plan) == 0
    queued = slurm.in_queue(plan)
    assert set(queued) == set(plan.jobs)
    arrays = {slurm.submitted(plan)[job.name].partition("_")[0] for job in trainings}
    assert len(arrays) == 2, "of at most three jobs"
    assert run(plan) == 0, "a second run submits nothing"
    assert slurm.in_queue(plan).keys() == queued.keys()

    wait_until(lambda: any(len(epochs(plan, job)) > 2 for job in trainings), 400, plan, cluster)
    preempted = next(job for job in trainings if len(epochs(plan, job)) > 2)
    cluster.signal("USR1", slurm.submitted(plan)[preempted.name])
    cluster.stop_one("slurmctld")
    cluster.start_controller()

    others = [job for job in trainings if job is not preempted]
    wait_until(lambda: any(len(epochs(plan, job)) > 1 and not plan.is_done(job) for job in others), 400, plan, cluster)
    killed = next(job for job in others if len(epochs(plan, job)) > 1 and not plan.is_done(job))
    os.kill(read_log(plan.log(killed)).pid, signal.SIGKILL)

    wait_until(lambda: not slurm.in_queue(plan), 420, plan, cluster)
    unfinished = {job.name: plan.log(job).read_text()[-800:] for job in plan.jobs.values() if not plan.is_done(job)}
    assert not unfinished
    for job in trainings:
        trained = epochs(plan, job)
        assert sorted(set(trained)) == list(range(EPOCHS))
        if job is preempted:
            assert len(trained) == EPOCHS + 1, "only the epoch that was interrupted is trained again"
        elif job is not killed:
            assert trained == list(range(EPOCHS))
    splits = json.loads((plan.preprocessed / "Dataset123_Mine/splits_final.json").read_text())
    for name in ("evaluate_D123_GLIMS", "evaluate_D123_LATUP-Net"):
        summary = json.loads(plan._summary(plan.jobs[name]).read_text())
        assert summary["cases"] == len(splits[0]["val"]) + len(splits[1]["val"])
        assert summary["missing_predictions"] == []
    assert (plan.report(123) / "leaderboard.html").exists()
    assert run(plan) == 0
    assert not slurm.in_queue(plan), "nothing is left to do"
    assert outcome(plan) == outcome(undisturbed(plan, tmp_path / "undisturbed", monkeypatch))


def test_cancelled_jobs_leave_the_queue_and_a_lost_record_is_noticed(plan, cluster, capsys):
    assert run(plan) == 0
    record = plan.state / slurm.RECORD
    kept = record.read_text()
    record.write_text("{ damaged\n")
    assert run(plan) == 2
    assert "the file was damaged. Cancel them with scancel -n" in " ".join(capsys.readouterr().err.split())
    record.write_text(kept)
    assert main(["compare", "cancel", str(plan.path), "--executor", "slurm"]) == 0
    wait_until(lambda: not slurm.in_queue(plan), 60, plan, cluster)


def test_a_job_that_ends_before_it_begins_is_told(plan, cluster, capsys):
    plan.path.write_text(COMPARISON.replace("array_size: 3", "setup: ['echo no such module; exit 3']"))
    assert main(["compare", "run", str(plan.path), "--executor", "slurm"]) == 0
    wait_until(lambda: not slurm.in_queue(plan), 60, plan, cluster)
    assert main(["compare", "status", str(plan.path), "--executor", "slurm"]) == 0
    assert "8 failed" in capsys.readouterr().out
    assert main(["compare", "logs", str(plan.path), "train_D123_GLIMS_fold0"]) == 0
    assert "no such module" in capsys.readouterr().out


def test_without_a_cluster_it_says_so(plan, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert run(plan) == 2
    assert "no machine of a SLURM cluster" in capsys.readouterr().err
