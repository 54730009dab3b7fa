"""The cache of compiled kernels: what is loaded, what is compiled again, and what happens where neither is possible."""

import os
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch

from nnunet_glims.architectures import GLIMS
from nnunet_glims.kernels import compiled, formulas, ops

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users as POSIX has them"),
    pytest.mark.skipif(compiled.library() is None, reason="no C compiler"),
]
OTHER_USER = 12345


def may_give_files_away():
    """Whether this process may do so: root, but not in a container that has no other users."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.chown(file.name, OTHER_USER, OTHER_USER)
        except (AttributeError, OSError):
            return False
    return True


needs_root = pytest.mark.skipif(not may_give_files_away(), reason="only root can give files away")


def as_in_a_new_process(monkeypatch):
    """Forget what this process has loaded."""
    monkeypatch.setattr(compiled, "_loaded", cache(compiled._loaded.__wrapped__))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder for kernels that consist of one function, which is compiled in a moment."""
    sources = tmp_path / "c"
    sources.mkdir()
    (sources / "answer.c").write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(compiled, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    as_in_a_new_process(monkeypatch)
    return tmp_path / "cache/nnunet_glims"


@pytest.fixture
def cached(folder, monkeypatch):
    """The library in the cache folder, as another process has left it."""
    assert compiled.library().answer() == 42
    (file,) = folder.glob("*.so")
    as_in_a_new_process(monkeypatch)
    return file


def compilations(monkeypatch):
    """A list that grows with every run of the compiler."""
    commands, compile_ = [], compiled._compile
    monkeypatch.setattr(compiled, "_compile", lambda command: commands.append(command) or compile_(command))
    return commands


def test_a_whole_library_is_loaded_and_not_compiled_again(cached, monkeypatch):
    commands = compilations(monkeypatch)
    with warnings.catch_warnings(record=True) as told:
        assert compiled.library().answer() == 42
    assert commands == [] and told == []
    assert cached.stat().st_mode & 0o777 == 0o600 and cached.parent.stat().st_mode & 0o777 == 0o700


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def make_folder(file):
    file.unlink()
    (file / "inside").mkdir(parents=True)


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:5000]),
    "a bit": lambda file: flip(file),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "text": lambda file: file.write_text("no library"),
    "a folder": make_folder,
    "writable for all": lambda file: file.chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_library_is_compiled_again_with_one_warning(cached, monkeypatch, damage):
    damage(cached)
    with pytest.warns(RuntimeWarning, match="compiled again") as told:
        assert compiled.library().answer() == 42
    assert len(told) == 1 and str(cached) in str(told[0].message)
    as_in_a_new_process(monkeypatch)
    commands = compilations(monkeypatch)
    with warnings.catch_warnings(record=True) as told:
        assert compiled.library().answer() == 42
    assert commands == [] and told == []


def test_the_library_is_on_the_disk_before_it_has_its_name(folder, monkeypatch):
    events, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("synced") or sync(descriptor))
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("renamed") or replace(*paths))
    compiled.library()
    assert events[:2] == ["synced", "renamed"]


def plant(folder: Path, tmp_path, name):
    """Put a library with another answer under a name that its checksum fits; return its path."""
    (tmp_path / "evil.c").write_text("int answer(void) { return 666; }\n")
    built = tmp_path / "evil.so"
    subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / "evil.c"), "-o", str(built)], check=True)
    content = built.read_bytes()
    planted = folder / compiled._file_name(name, content)
    planted.write_bytes(content)
    planted.chmod(0o600)
    return planted


@needs_root
def test_a_library_of_another_user_is_not_loaded(cached, tmp_path):
    name = cached.name.rpartition("-")[0]
    cached.unlink()
    planted = plant(cached.parent, tmp_path, name)
    os.chown(planted, OTHER_USER, OTHER_USER)
    with pytest.warns(RuntimeWarning, match="not loaded"):
        assert compiled.library().answer() == 42


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
def test_what_lies_in_a_folder_to_which_others_can_write_is_not_loaded(cached, tmp_path, monkeypatch, mode):
    name = cached.name.rpartition("-")[0]
    cached.unlink()
    plant(cached.parent, tmp_path, name)
    cached.parent.chmod(mode)
    with pytest.warns(RuntimeWarning, match="others could write to this folder") as told:
        assert compiled.library().answer() == 42
    assert len(told) == 1 and not cached.parent.stat().st_mode & 0o022
    as_in_a_new_process(monkeypatch)
    with warnings.catch_warnings(record=True) as told:
        assert compiled.library().answer() == 42
    assert told == []


@needs_root
def test_a_folder_of_another_user_is_not_used(cached):
    os.chown(cached.parent, OTHER_USER, OTHER_USER)
    with pytest.warns(RuntimeWarning, match="belongs to another user.*set XDG_CACHE_HOME"):
        assert compiled.library() is None


def script(folder, text):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


RUBBISH = 'for word; do case $word in *.so) echo rubbish > "$word";; esac; done'
BROKEN = {
    "a quote that is not closed": lambda _: "gcc '",
    "a backslash at the end": lambda _: "gcc \\",
    "no such program": lambda _: "/opt/nothing/bin/gcc -m64",
    "a folder": str,
    "a file that is no program": lambda folder: f"{folder}/c/answer.c",
    "an unknown option": lambda _: "cc --no-such-option",
    "a compiler that fails": lambda _: "false",
    "a compiler that writes nothing": lambda _: "true",
    "a compiler that writes rubbish": lambda folder: script(folder, RUBBISH),
    "a program of another processor": lambda folder: foreign(folder),
    "not UTF-8": lambda _: os.fsdecode(b"gcc-\xff"),
    "one that is killed": lambda folder: script(folder, "kill -9 $$"),
}


def foreign(folder):
    path = folder / "foreign"
    path.write_bytes(b"\x7fELF" + bytes(200))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("command", BROKEN.values(), ids=BROKEN)
def test_with_any_broken_compiler_there_is_one_warning_and_the_formula(folder, tmp_path, monkeypatch, command):
    monkeypatch.setenv("CC", command(tmp_path))
    x, slope = torch.randn(1, 2, 4, 4, 4), torch.rand(1)
    with pytest.warns(RuntimeWarning, match="C kernels cannot be used: .*(CC|compiler)") as told:
        found = [ops.norm_act(x.to(kind), slope.to(kind)) for kind in (torch.float32, torch.bfloat16)]
    assert all(torch.equal(y, formulas.norm_act(x.to(y.dtype), None, None, slope.to(y.dtype))) for y in found)
    assert len(told) == 1 and compiled.library() is None
    assert not list(folder.glob("*.so"))


def test_variables_of_compilers_that_are_not_asked_for_do_no_harm(folder, monkeypatch):
    for name in ("CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CPPFLAGS"):
        monkeypatch.setenv(name, "gcc '")
    with warnings.catch_warnings(record=True) as told:
        assert compiled.library().answer() == 42
    assert told == []


def test_without_any_compiler_nobody_is_warned(folder, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with warnings.catch_warnings(record=True) as told:
        assert compiled.library() is None
    assert told == [] and "install gcc or clang" in compiled.problem().way_out


def no_home(monkeypatch, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)


def unwritable_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/proc/nohome")


def file_for_home(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))


@pytest.mark.parametrize("place", [no_home, unwritable_home, file_for_home])
def test_without_a_place_for_the_library_a_network_runs_with_one_warning(folder, monkeypatch, tmp_path, place):
    place(monkeypatch, tmp_path)
    network = GLIMS(1, 2, (32, 32, 32), feature_size=3, num_heads=(3,) * 5, depths=(1,) * 5).eval()
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="set XDG_CACHE_HOME") as told:
        assert network(torch.randn(1, 1, 32, 32, 32))[0].isfinite().all()
    assert len(told) == 1


@needs_root
@pytest.mark.slow
def test_a_user_without_name_and_home_computes(tmp_path):
    """As in docker run -u 12345: no HOME, no entry in /etc/passwd, and no right to write anywhere."""
    code = (
        "import os, torch\nfrom nnunet_glims.kernels import compiled, ops\n"  # Python itself may not be readable afterwards
        f"os.setgid({OTHER_USER}); os.setuid({OTHER_USER})\n"
        "print(ops.norm_act(torch.ones(1, 2, 4, 4, 4), torch.rand(1)).abs().sum().item())"
    )
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd="/")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0.0" and result.stderr.count("C kernels cannot be used") == 1


def test_the_networks_kernels_are_compiled_again_and_compute_the_same(tmp_path, monkeypatch):
    """The real kernels. A process that calls functions in a file that was cut off is ended by SIGBUS."""
    monkeypatch.setattr(compiled, "OPTIONS", ("-O0", *compiled.OPTIONS[1:]))  # fast to compile
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    as_in_a_new_process(monkeypatch)
    x, slope = torch.randn(1, 2, 8, 8, 8), torch.rand(1)
    expected = ops.norm_act(x, slope)
    (file,) = tmp_path.rglob("*.so")
    whole = file.read_bytes()
    file.write_bytes(whole[:4096])
    assert torch.equal(ops.norm_act(x, slope), expected)  # by the library that is loaded
    as_in_a_new_process(monkeypatch)
    with pytest.warns(RuntimeWarning, match="compiled again"):
        assert torch.equal(ops.norm_act(x, slope), expected)
    assert file.read_bytes() == whole and compiled.library() is not None
