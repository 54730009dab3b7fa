"""Disks that are full or may not be written: a run fails with the reason, and the next one completes what is missing."""

import contextlib
import os
import subprocess

import pytest

from tests.experiments.conftest import run_local


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def small_disk(experiment):
    """A function that makes a folder of nnU-Net's a disk of its own, of 256 KiB."""
    mounted = []

    def make(folder):
        done = mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", folder)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=False)


def fill(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(os.urandom(4096))


def test_a_full_disk(experiment, stand_ins, small_disk):
    small_disk(experiment.layout.results)
    filler = experiment.layout.results / "filler"
    fill(filler)
    told = []
    failed = run_local(experiment, told.append)
    assert "train_D007_GLIMS_fold0" in failed and "report_D007" in failed
    assert "No space left on device" in experiment.jobs["train_D007_GLIMS_fold0"].folder.last_line()
    assert any("No space left on device" in line for line in told)
    filler.unlink()
    assert run_local(experiment, told.append) == []
    assert all(experiment.is_done(job) for job in experiment.jobs.values())


def test_a_data_set_that_may_not_be_written(experiment, stand_ins, small_disk):
    small_disk(experiment.layout.preprocessed)
    folder = experiment.layout.preprocessed / experiment.layout.dataset_names[7]
    folder.mkdir()
    assert mount("-o", "remount,ro", experiment.layout.preprocessed).returncode == 0
    with pytest.raises(OSError, match="Read-only file system"):
        run_local(experiment, str)  # the stand-in's preparation writes there
    assert mount("-o", "remount,rw", experiment.layout.preprocessed).returncode == 0
    assert run_local(experiment, str, chosen={"prepare_D007"}) == []
    assert mount("-o", "remount,ro", experiment.layout.preprocessed).returncode == 0
    assert run_local(experiment, str) == [], "trainings only read it"
