"""The lock: held by one, told apart from a file system without locks, and free again after a death."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from nnunet_glims import locks
from nnunet_glims.errors import ProcessingError
from nnunet_glims.locks import LockHeld, Process, holder_of, lock

HOLD = """
import errno, os, sys, time
from pathlib import Path
from nnunet_glims import locks
from nnunet_glims.errors import ProcessingError
if len(sys.argv) > 2:
    def flock(descriptor, operation):
        raise OSError(int(sys.argv[2]), "no locks here")
    locks.fcntl.flock = flock
with locks.lock(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    time.sleep(3600)
"""


def no_locks(number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture(params=[None, errno.ENOLCK], ids=["locks", "no locks"])
def system(request, monkeypatch):
    """A file system with locks, and one without; the argument that makes another process see the same."""
    if request.param is None:
        return []
    monkeypatch.setattr(locks.fcntl, "flock", no_locks(request.param))
    return [str(request.param)]


@pytest.fixture
def other(tmp_path, system):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a.lock"), *system]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_what_another_process_holds_is_refused_by_name(tmp_path, other):
    path = tmp_path / "a.lock"
    message = rf"work: another process does this already \(user .*, process {other.pid} on \S+, since 2\d{{3}}-"
    with pytest.raises(LockHeld, match=message) as error, lock(path, "work"):
        pytest.fail("it must not be reached")
    assert error.value.exit_code == 1
    assert abs(error.value.holder.since - time.time()) < 3600  # seconds since 1970
    assert holder_of(path).process.pid == other.pid


def test_a_killed_process_holds_nothing(tmp_path, other):
    path = tmp_path / "a.lock"
    other.kill()
    other.wait()
    assert holder_of(path) is None
    with lock(path, "work"):
        assert holder_of(path).process == Process.of(os.getpid())


def test_it_is_let_go_of_at_the_end_also_of_a_failure(tmp_path, system):
    path = tmp_path / "new/a.lock"
    assert holder_of(path) is None
    with pytest.raises(RuntimeError, match="fails"), lock(path, "work"):
        raise RuntimeError("fails")
    assert holder_of(path) is None
    with lock(path, "work"), pytest.raises(LockHeld), lock(path, "work"):
        pytest.fail("it must not be reached")


@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL"])
def test_every_way_of_a_file_system_to_have_no_locks(tmp_path, monkeypatch, name):
    monkeypatch.setattr(locks.fcntl, "flock", no_locks(getattr(errno, name)))
    path = tmp_path / "a.lock"
    with lock(path, "work"), pytest.raises(LockHeld), lock(path, "work"):
        pytest.fail("it must not be reached")
    with lock(path, "work"):
        pass


def test_a_requeued_slurm_job_takes_the_lock_that_it_left_on_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.fcntl, "flock", no_locks(errno.ENOSYS))
    path = tmp_path / "a.lock"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    left = lock(path, "work")
    left.__enter__()
    described = tmp_path / "a.lock.holder"
    described.write_text(described.read_text().replace(Process.of(os.getpid()).host, "elsewhere"))
    content = described.read_text()
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    with pytest.raises(LockHeld, match=r"delete .*a.lock.soft if.*on elsewhere, since"), lock(path, "work"):
        pytest.fail("it must not be reached")
    assert described.read_text() == content
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with lock(path, "work"):
        assert holder_of(path).process.is_here


def test_a_user_without_a_name_is_told_by_number(tmp_path, monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(locks.getpass, "getuser", nameless)
    with lock(tmp_path / "a.lock", "work"):
        assert holder_of(tmp_path / "a.lock").user == str(os.getuid())


def test_a_lock_that_an_earlier_release_described_has_no_user(tmp_path, other):
    described = tmp_path / "a.lock.holder"
    content = json.loads(described.read_text())
    del content["user"]
    described.write_text(json.dumps(content))
    with pytest.raises(LockHeld, match=rf"\(process {other.pid} on "), lock(tmp_path / "a.lock", "work"):
        pytest.fail("it must not be reached")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ProcessingError, match=r"a.lock: cannot be written: .*free"),
        lock(tmp_path / "file/a.lock", "work"),
    ):
        pytest.fail("it must not be reached")


def test_a_description_that_another_machine_left_is_no_lock(tmp_path, other):
    path, described = tmp_path / "a.lock", tmp_path / "a.lock.holder"
    content = described.read_text().replace(Process.of(os.getpid()).host, "elsewhere")
    other.kill()
    other.wait()
    path.with_name("a.lock.soft").unlink(missing_ok=True)
    described.write_text(content)
    assert holder_of(path) is None


def test_a_process_is_not_another_one_of_its_number():
    own = Process.of(os.getpid())
    assert own.is_alive
    assert not Process(own.host, own.pid, "1").is_alive
    assert not Process("elsewhere", own.pid, own.started).is_alive


def test_it_is_imported_without_fcntl():
    code = "import sys; sys.modules['fcntl'] = None; import nnunet_glims.locks as locks; assert locks.fcntl is None"
    subprocess.run([sys.executable, "-c", code], check=True)
