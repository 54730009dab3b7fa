"""Disks that are full or may not be written: a run fails with the reason, and the next one completes what is missing."""

import contextlib
import os
import subprocess

import pytest

from nnunet_glims.experiments.local import run_local
from nnunet_glims.experiments.step import read_log


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def small_disk(plan):
    """A function that makes a folder of the plan a disk of its own, of 256 KiB."""
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


def test_a_full_disk(plan, stand_ins, small_disk):
    small_disk(plan.results)
    filler = plan.results / "filler"
    fill(filler)
    told = []
    failed = run_local(plan, told.append)
    assert "train_D007_GLIMS_fold0" in failed and "report_D007" in failed
    assert "No space left on device" in read_log(plan.log(plan.jobs["train_D007_GLIMS_fold0"])).last
    assert any("No space left on device" in line for line in told)
    filler.unlink()
    assert run_local(plan, told.append) == []
    assert all(plan.is_done(job) for job in plan.jobs.values())


def test_a_data_set_that_may_not_be_written(plan, stand_ins, small_disk):
    small_disk(plan.preprocessed)
    folder = plan.preprocessed / plan.dataset_names[7]
    folder.mkdir()
    assert mount("-o", "remount,ro", plan.preprocessed).returncode == 0
    with pytest.raises(OSError, match="Read-only file system"):
        run_local(plan, str)  # the stand-in's preparation writes there
    assert mount("-o", "remount,rw", plan.preprocessed).returncode == 0
    assert run_local(plan, str, chosen={"prepare_D007"}) == []
    assert mount("-o", "remount,ro", plan.preprocessed).returncode == 0
    assert run_local(plan, str) == [], "trainings only read it"
