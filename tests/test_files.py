"""What is written is complete or not there, whatever happens meanwhile and whoever writes beside it."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from nnunet_glims import files
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import (
    check_new,
    check_output_file,
    check_output_folder,
    make_folder,
    new_file,
    new_folder,
    read_json,
    remove_leftovers_below,
    working_folder,
    write_bytes,
    write_json,
)


@contextmanager
def largest_file(nbytes):
    """A disk on which files end at so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_crash_while_writing_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    monkeypatch.setattr("nnunet_glims.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert names(tmp_path) == ["state.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_folder_leaves_the_old_one_and_nothing_beside(error, tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "old").touch()

    def interrupted():
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").touch()
            raise error

    with pytest.raises(error):
        interrupted()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]
    with new_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_an_old_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    with new_folder(tmp_path / "out") as folder:
        (folder / "old").touch()
    rename, renamed = Path.rename, []

    def third_fails(self, target):
        renamed.append(self)
        if len(renamed) == 3:  # after the working folder got its name and the old folder was moved away
            raise OSError(errno.EIO, "Input/output error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", third_fails)
    with pytest.raises(ProcessingError, match="Input/output error"), new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("name", ["lock", "replaced", ".working", "a b"])
def test_any_name_can_be_written_twice(name, tmp_path):
    for content in (b"old", b"new"):
        with new_folder(tmp_path / name) as folder:
            write_bytes(folder / name, content)
    assert names(tmp_path) == [name] and (tmp_path / name / name).read_bytes() == b"new"


def test_a_system_without_such_locks_writes_and_leaves_others_folders_alone(tmp_path, monkeypatch):
    """Windows has no fcntl."""
    left = tmp_path / ".out.abc.tmp"
    left.mkdir()
    os.utime(left, (0, 0))
    monkeypatch.setattr(files, "fcntl", None)
    with new_folder(tmp_path / "out") as folder:
        write_bytes(folder / "file", b"content")
    assert names(tmp_path) == [left.name, "out"] and names(tmp_path / "out") == ["file"]


def test_the_content_is_synced_before_the_rename(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    write_bytes(tmp_path / "file", b"content")
    assert [Path(name).name for name in done] == ["file", "rename", tmp_path.name]


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "usual").touch()
    with new_folder(tmp_path / "folder"):
        pass
    (tmp_path / "usual_folder").mkdir()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "usual_folder").stat().st_mode
    )


def test_two_writers_with_one_process_id_do_not_mix(tmp_path):
    """As in containers, where every first process has the number 1."""
    with new_folder(tmp_path / "out") as first:
        (first / "of").write_text("first")
        with new_folder(tmp_path / "other"), working_folder(tmp_path / "out") as second:
            assert names(first) == ["of"] and names(second) == [files._LOCK]
        assert (first / "of").read_text() == "first"
    assert (tmp_path / "out/of").read_text() == "first"


KILLED = """
import os, signal, sys
from pathlib import Path
from nnunet_glims.files import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    print("ready", flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_run_removes_what_a_killed_one_left_but_nothing_of_a_living_one(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        (left,) = tmp_path.iterdir()
        with new_folder(tmp_path / "out"):
            pass
        assert left.exists()
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.wait(120) == -signal.SIGKILL
    assert left.exists()
    with new_folder(tmp_path / "another"):
        pass
    assert left.exists()
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["another", "out"]


KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from nnunet_glims.files import new_folder
out = Path(sys.argv[1])
rename = Path.rename
def kill_after_the_old_one_is_moved_away(self, target):
    renamed = rename(self, target)
    if self == out:
        os.kill(os.getpid(), signal.SIGKILL)
    return renamed
Path.rename = kill_after_the_old_one_is_moved_away
with new_folder(out) as folder:
    (folder / "new").touch()
"""


def killed_while_replacing(out):
    with new_folder(out) as folder:
        (folder / "old").touch()
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_REPLACING, str(out)], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL and not out.exists()


def test_an_old_folder_survives_a_kill_between_the_two_renames(tmp_path):
    """The next run fails as well: what was there before is there again all the same."""
    killed_while_replacing(tmp_path / "out")
    with new_folder(tmp_path / "out.of.another"):  # whose leftovers have names that begin alike
        pass
    with pytest.raises(ValueError, match="fails"), new_folder(tmp_path / "out"):
        raise ValueError("fails")
    assert names(tmp_path) == ["out", "out.of.another"] and names(tmp_path / "out") == ["old"]


def test_an_old_folder_is_removed_where_a_new_one_has_taken_its_place(tmp_path):
    killed_while_replacing(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_leftovers_of_a_place_whose_name_begins_alike_are_left_alone(tmp_path):
    killed_while_replacing(tmp_path / "out.b")
    left = names(tmp_path)
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [*left, "out"]


def test_without_locks_nothing_is_taken_for_dead(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
        write_bytes(tmp_path / "out", b"")
        (tmp_path / "out").unlink()
        assert names(folder) == ["file"]
    assert names(tmp_path) == ["out"]


def test_a_full_disk_names_file_disk_and_free_bytes(tmp_path):
    write_bytes(tmp_path / "file", b"old")
    with largest_file(1000), pytest.raises(ProcessingError) as caught:
        write_bytes(tmp_path / "file", bytes(2000))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'file'}: cannot be written: File too large. The disk /")
    assert "bytes" in message and caught.value.exit_code == 1
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"
    with pytest.raises(ProcessingError, match="No space left"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ProcessingError, match="missing/file: cannot be written: No such file"):
        write_bytes(tmp_path / "missing/file", b"")


def test_an_error_of_another_file_is_not_taken_for_one_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "file"):
        (tmp_path / "source").read_bytes()
    assert names(tmp_path) == []


BEFORE_ITS_LOCK = """
import os, sys
from pathlib import Path
from nnunet_glims import files
files._lock = lambda folder: os.kill(os.getpid(), 9)
with files.working_folder(Path(sys.argv[1])):
    pass
"""


def test_a_process_killed_before_it_has_its_lock_leaves_nothing_for_ever(tmp_path):
    command = [sys.executable, "-c", BEFORE_ITS_LOCK, str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [Path(name).suffix for name in names(tmp_path)] == [".new"]
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


def test_a_folder_that_is_being_made_is_left_alone(tmp_path):
    """While another process holds the parent's lock; where there are no such locks, for a minute."""
    folder = tmp_path / ".out.abc.new"
    folder.mkdir()
    with files._parent_locked(tmp_path) as is_locked:
        assert is_locked
        remove_leftovers_below(tmp_path)
        assert folder.exists()
        long_ago = time.time() - 120
        os.utime(folder, (long_ago, long_ago))
        remove_leftovers_below(tmp_path)
        assert not folder.exists()


KILLS_ITSELF = """
import os, sys
from pathlib import Path
from nnunet_glims.files import working_folder
with working_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), 9)
"""


def killed_while_writing(*places):
    for place in places:
        assert (
            subprocess.run([sys.executable, "-c", KILLS_ITSELF, str(place)], check=False).returncode == -signal.SIGKILL
        )


def test_what_a_killed_process_left_is_removed_although_its_result_is_complete(tmp_path):
    done = tmp_path / "done"
    done.mkdir()
    killed_while_writing(done, done / "case.nii.gz", tmp_path / "rules.json", tmp_path / "done.other")
    (tmp_path / "rules.json").touch()
    before = names(tmp_path)
    with working_folder(done):
        pass
    with working_folder(done / "living") as living:
        with pytest.raises(UsageError, match="this exists already"):
            check_new(done, False, "mark", "result")
        check_output_folder(done)
        check_output_file(tmp_path / "rules.json")
        assert names(done) == [living.name]
    left = names(tmp_path)
    assert len(before) == 5 and len(left) == 3 and left[1:] == ["done", "rules.json"] and "done.other" in left[0]
    remove_leftovers_below(tmp_path)
    assert names(tmp_path) == ["done", "rules.json"]


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: this is a file, and the results need a folder"):
        check_new(tmp_path / "file/out", False, "mark", "result")
    with pytest.raises(UsageError, match="this is a folder, and a file is to be written"):
        check_output_file(tmp_path)
    with pytest.raises(UsageError, match="none: there is no such folder to write a.json to"):
        check_output_file(tmp_path / "none/a.json")


@pytest.mark.parametrize("kind", [new_file, new_folder])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_errors_of_a_disk_name_the_place_and_leave_nothing(tmp_path, kind, number):
    """Errors of write and fsync name no file."""
    message = rf"out: cannot be written: {os.strerror(number)}. The disk"
    with pytest.raises(ProcessingError, match=message), kind(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error", [OSError("not a gzipped file"), OSError(errno.EIO, "Input/output error", "image.nii")]
)
def test_errors_of_other_files_are_passed_on(tmp_path, error):
    with pytest.raises(OSError, match=str(error).replace("[", r"\[")), new_file(tmp_path / "out"):
        raise error


def test_a_name_too_long_is_refused(tmp_path):
    with pytest.raises(ProcessingError, match="cannot be written: File name too long"):
        write_json(tmp_path / ("a" * 300), {})
    with pytest.raises(ProcessingError, match="cannot be written: File name too long"):
        make_folder(tmp_path / ("a" * 300) / "b")
    check_output_folder(tmp_path / ("a" * 300))


def test_a_folder_that_another_process_has_written_meanwhile_is_kept(tmp_path):
    def write_both():
        with new_folder(tmp_path / "out") as ours:
            (ours / "ours").touch()
            with new_folder(tmp_path / "out") as others:
                (others / "others").touch()

    with pytest.raises(ProcessingError, match="out: another process has written this meanwhile"):
        write_both()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["others"]
