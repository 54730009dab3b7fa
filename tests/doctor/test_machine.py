"""What the doctor sees on machines made ill on purpose."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from functools import cache

import pytest
import torch

from nnunet_glims import doctor
from nnunet_glims.cli import main
from nnunet_glims.doctor import device, discovery, folders, limits, variables, versions
from nnunet_glims.doctor.findings import Finding, isolated
from nnunet_glims.errors import UsageError
from nnunet_glims.kernels import compiled

TRAINER = "nnUNetTrainerGLIMS"


def findings(checks):
    return {finding.topic: finding for finding in checks}


@pytest.fixture
def roots(tmp_path, monkeypatch):
    for name in folders.FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def test_versions_outside_of_what_nnunet_and_we_ask_for_fail_with_the_command(monkeypatch):
    found = findings(versions.check())
    assert {finding.verdict for finding in found.values()} == {"ok"}
    asked = [text for text in importlib.metadata.requires("nnunet-glims") if "extra ==" not in text]
    assert found.keys() == {"Python", *versions.ALWAYS_SHOWN, "other packages"}
    assert found["other packages"].state.startswith(f"{len(asked) - len(versions.ALWAYS_SHOWN)} ")
    real = importlib.metadata.version
    wrong = {"torch": "2.9.1+cu128", "nnunetv2": "2.7.0", "scipy": "1.14.1", "rich": "of my own"}

    def version(name):
        if name == "submitit":
            raise importlib.metadata.PackageNotFoundError(name)
        return wrong.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.18")
    found = findings(versions.check())
    assert found["torch"].verdict == "fail" and "!=2.9.*" in found["torch"].way_out
    assert found["nnunetv2"].verdict == "fail" and ">=2.8" in found["nnunetv2"].way_out
    assert found["scipy"].way_out == 'pip install "scipy>=1.15"'
    assert found["rich"].verdict == "fail" and "of my own" in found["rich"].state
    assert (found["submitit"].verdict, found["submitit"].state) == ("fail", "not installed")
    assert found["Python"].verdict == "fail" and ">=3.10" in found["Python"].way_out
    assert found["batchgeneratorsv2"].verdict == "ok"
    assert found["other packages"].state.startswith(f"{len(asked) - len(versions.ALWAYS_SHOWN) - 3} ")


def test_without_nnunet_the_other_packages_are_looked_at_all_the_same(monkeypatch):
    requires, version = importlib.metadata.requires, importlib.metadata.version

    def without(function):
        def asked(name):
            if name == "nnunetv2":
                raise importlib.metadata.PackageNotFoundError(name)
            return function(name)

        return asked

    monkeypatch.setattr(importlib.metadata, "requires", without(requires))
    monkeypatch.setattr(importlib.metadata, "version", without(version))
    found = findings(versions.check())
    assert found["nnunetv2"].state == "not installed" and found["torch"].verdict == "ok"


def test_folders_that_are_not_set_or_missing_or_full(roots, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", str(roots / "gone now"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**39, 3 * 2**30))
    found = findings(folders.check())
    assert (found["nnUNet_raw"].verdict, found["nnUNet_raw"].state) == ("fail", "not set")
    assert found["nnUNet_results"].way_out == f"mkdir -p '{roots}/gone now'"
    assert found["nnUNet_preprocessed"].verdict == "warn" and "3 GiB free" in found["nnUNet_preprocessed"].state


@pytest.mark.parametrize(
    ("value", "state", "way_out"),
    [
        ("~/raw", "what ~ is", "export nnUNet_raw={home}/raw"),
        ("'~/raw'", "quotes", "export nnUNet_raw={home}/raw"),
        ('"{root}/nnUNet_raw"', "quotes", "export nnUNet_raw={root}/nnUNet_raw"),
        ("'{root}/a b'", "quotes", "export nnUNet_raw='{root}/a b'"),
        ("$HOME/raw", "variable", "export nnUNet_raw={home}/raw"),
        ("${{HOME}}/raw", "variable", "export nnUNet_raw={home}/raw"),
        ("{root}/nnUNet_raw\r", "line break", "export nnUNet_raw={root}/nnUNet_raw"),
        (" {root}/nnUNet_raw", "blanks", "export nnUNet_raw={root}/nnUNet_raw"),
        ("{root}/nnUNet_raw:{root}/nnUNet_results", "several folders", "export nnUNet_raw={root}/nnUNet_raw"),
        ("{root}/file", "a file, not a folder", "export nnUNet_raw=/path/to/nnUNet_raw"),
        ("{root}/file/below", "no such folder", "mkdir -p {root}/file/below"),
        ("{root}/link", "leads nowhere", "export nnUNet_raw=/path/to/nnUNet_raw"),
        ("{root}/nnUNet_results", "the same folder", "export nnUNet_results=/path/to/nnUNet_results"),
        ("nnUNet_raw", "wherever commands are run", "export nnUNet_raw={root}/nnUNet_raw"),
        ("{root}/[red]x[/]", "no such folder", "mkdir -p '{root}/[red]x[/]'"),
    ],
)
def test_a_variable_that_names_no_folder_says_what_to_set(roots, monkeypatch, value, state, way_out):
    monkeypatch.setenv("HOME", str(roots / "home"))
    monkeypatch.chdir(roots)
    (roots / "file").write_text("")
    (roots / "link").symlink_to(roots / "nothing")
    names = {"root": roots, "home": roots / "home"}
    monkeypatch.setenv("nnUNet_raw", value.format(**names))
    (found,) = [finding for finding in folders.check() if finding.verdict != "ok"]
    assert state in found.state and found.way_out == way_out.format(**names)


@pytest.mark.slow
def test_the_trainer_is_looked_for_as_nnunet_does(monkeypatch):
    assert findings(discovery.check(TRAINER))["trainer"].verdict == "ok"
    (finding,) = discovery.check("nnUNetTrainerGLIMMS")
    assert "did you mean 'nnUNetTrainerGLIMS'" in finding.way_out
    monkeypatch.setenv("NNUNET_GLIMS_NO_DISCOVERY", "1")
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    (finding,) = discovery.check(TRAINER)
    assert finding.way_out == "unset NNUNET_GLIMS_NO_DISCOVERY"


def test_more_loading_processes_than_cores_are_too_many(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # nnU-Net never takes more processes than that
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    finding = findings(variables.check())["nnUNet_n_proc_DA"]
    assert finding.verdict == "warn" and "8 cores allotted by SLURM" in finding.state and "=7" in finding.way_out
    for value, verdict in (("0", "warn"), ("-1", "fail"), ("many", "fail")):
        monkeypatch.setenv("nnUNet_n_proc_DA", value)
        assert findings(variables.check())["nnUNet_n_proc_DA"].verdict == verdict
    assert "'many'" in findings(variables.check())["nnUNet_n_proc_DA"].state


@pytest.mark.parametrize(
    ("name", "right", "wrong", "way_out"),
    [
        ("NNUNET_GLIMS_PRECISION", "bf16", "fp8", "unset NNUNET_GLIMS_PRECISION"),
        ("NNUNET_GLIMS_KERNELS", "eager", "fast", "unset NNUNET_GLIMS_KERNELS"),
        ("nnUNet_def_n_proc", None, "eight", "unset nnUNet_def_n_proc, or export nnUNet_def_n_proc=8"),
    ],
)
def test_a_wrong_variable_is_a_finding(monkeypatch, name, right, wrong, way_out):
    monkeypatch.delenv(name, raising=False)
    assert name not in findings(variables.check())
    if right is not None:
        monkeypatch.setenv(name, right)
        found = findings(variables.check())[name]
        assert found.verdict == "ok" and right in found.state
    monkeypatch.setenv(name, wrong)
    found = findings(variables.check())[name]
    assert found.verdict == "fail" and wrong in found.state and found.way_out == way_out


@pytest.mark.parametrize(("kernels", "verdict"), [(object(), "ok"), (None, "warn")])
def test_kernels_for_a_gpu_are_looked_for_where_there_is_one(kernels, verdict, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("nnunet_glims.kernels.gpu.library", lambda: kernels)
    assert findings(device.check_gpus())["GPU kernels"].verdict == verdict


@pytest.mark.parametrize(
    ("name", "value", "state", "way_out"),
    [
        ("CC", "gcc '", "which is no command", "variable CC"),
        ("CC", "no-such-compiler", "no such program", "variable CC"),
        ("XDG_CACHE_HOME", "/dev/null", "/dev/null/nnunet_glims cannot be used", "set XDG_CACHE_HOME"),
    ],
)
def test_kernels_that_cannot_be_compiled_say_why_without_a_warning(monkeypatch, name, value, state, way_out):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(compiled, "_loaded", cache(compiled._loaded.__wrapped__))
    with warnings.catch_warnings(record=True) as told:
        (found,) = device.check_cpu_kernels()
    assert found.verdict == "warn" and state in found.state and way_out in found.way_out and told == []


def test_little_shared_memory_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(limits, "SHARED_MEMORY", tmp_path)
    for total, free, state in ((2**26, 2**26, "0.06 GiB"), (2**33, 2**20, "are free"), (0, 0, "0.00 GiB")):
        usage = shutil._ntuple_diskusage(total, total - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        (found,) = limits.check_shared_memory()
        assert found.verdict == "warn" and state in found.state and found.way_out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has a folder for shared memory")
@pytest.mark.parametrize("ill", ["missing", "a file", "read-only"])
def test_shared_memory_that_cannot_be_used_fails(monkeypatch, tmp_path, ill):
    folder = tmp_path / "shm"
    if ill == "a file":
        folder.write_text("")
    elif ill == "read-only":
        folder = "/proc/self/fdinfo"  # where root cannot write either
    monkeypatch.setattr(limits, "SHARED_MEMORY", folder)
    (found,) = limits.check_shared_memory()
    assert found.verdict == "fail" and "docker run" in found.way_out and str(folder) in found.state


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_read_only_dev_shm_is_seen():
    """The real folder, mounted read-only in a name space of its own."""
    code = (
        "from nnunet_glims.doctor import limits\n"
        "for found in limits.check_shared_memory(): print(found.verdict, found.state)"
    )
    line = (
        f'mount -o remount,ro,bind /dev/shm 2>/dev/null || mount -t tmpfs -o ro tmpfs /dev/shm; exec "$0" -c "{code}"'
    )
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", line, sys.executable], capture_output=True, text=True, timeout=120
    )
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip("mounting is not allowed here")
    assert result.stdout.startswith("fail /dev/shm: cannot be written to (Read-only file system)"), result.stderr


def raising(error):
    raise error
    yield


@pytest.mark.parametrize(
    "error", [UsageError("a: b"), KeyError("x"), AssertionError(), SystemExit(3), RecursionError()]
)
def test_a_surprise_in_one_check_is_a_finding_and_the_others_go_on(monkeypatch, error):
    (found,) = isolated("topic", raising, error)
    assert (found.topic, found.verdict) == ("topic", "fail") and found.state
    for module, name in ((versions, "check"), (device, "check_gpus"), (limits, "check_open_files")):
        monkeypatch.setattr(module, name, lambda: raising(error))
    monkeypatch.setattr(discovery, "check", lambda _: raising(error))
    found = findings(doctor.examine())
    assert {topic for topic in found if found[topic].state == isolated("", raising, error).__next__().state} == {
        "versions",
        "trainer",
        "GPU",
        "open files",
    }
    assert "CPU kernels" in found and "nnUNet_raw" in found


def test_the_command_exits_with_1_where_something_fails(monkeypatch, capsys):
    ill = [Finding("torch", "ok", "2.15"), Finding("nnUNet_raw", "fail", "not set", "export nnUNet_raw=…")]
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(ill))
    assert main(["doctor"]) == 1
    assert "export nnUNet_raw" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[1]["verdict"] == "fail"
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(ill[:1]))
    assert main(["doctor"]) == 0


def test_commands_are_not_broken_where_the_output_is_no_terminal(monkeypatch, capsys):
    command = f"export nnUNet_preprocessed=/{'long/' * 60}[of two]/nnUNet_preprocessed"
    monkeypatch.setattr(doctor, "examine", lambda *_: iter([Finding("folder", "fail", "not set", command)]))
    main(["doctor"])
    assert f"→ {command}" in [line.strip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["[red]", "[/]", "[/red]x", "a\x1b[31mb", "ü→\udcff", "[link=x]", "a:b:c :smile:"])
def test_any_name_of_a_folder_is_shown_as_it_is(roots, monkeypatch, capsys, name):
    monkeypatch.setenv("nnUNet_raw", str(roots / name))
    monkeypatch.setattr(discovery, "check", lambda _: iter(()))
    assert main(["doctor"]) == 1
    shown = name.replace("\x1b", "\\x1b").replace("\udcff", "\\xff")
    assert f"{roots}/{shown}: there is no such folder" in capsys.readouterr().out
