"""What the doctor sees in places made ill on purpose."""

import importlib.metadata
import json
import os
import platform
import shutil

import pytest
import torch

from nnunet_glims import doctor
from nnunet_glims.cli import main
from tests.preprocessed import DATASET, write_preprocessed

TRAINER = "nnUNetTrainerGLIMS"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in doctor.FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    write_preprocessed(tmp_path / "nnUNet_preprocessed")
    return tmp_path


def findings(checks):
    return {finding.topic: finding for finding in checks}


def test_versions_outside_of_what_nnunet_and_we_ask_for_fail_with_the_command(monkeypatch):
    found = findings(doctor._versions())
    assert {finding.verdict for finding in found.values()} == {"ok"}
    asked = [text for text in importlib.metadata.requires("nnunet-glims") if "extra ==" not in text]
    assert found.keys() == {"Python", *doctor.ALWAYS_SHOWN, "other packages"}
    assert found["other packages"].state.startswith(f"{len(asked) - len(doctor.ALWAYS_SHOWN)} ")
    real = importlib.metadata.version
    wrong = {"torch": "2.9.1+cu128", "nnunetv2": "2.7.0", "scipy": "1.14.1"}

    def version(name):
        if name == "submitit":
            raise importlib.metadata.PackageNotFoundError(name)
        return wrong.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.18")
    found = findings(doctor._versions())
    assert found["torch"].verdict == "fail" and "!=2.9.*" in found["torch"].way_out
    assert found["nnunetv2"].verdict == "fail" and ">=2.8" in found["nnunetv2"].way_out
    assert found["scipy"].way_out == 'pip install "scipy>=1.15"'
    assert (found["submitit"].verdict, found["submitit"].state) == ("fail", "not installed")
    assert found["Python"].verdict == "fail" and ">=3.10" in found["Python"].way_out
    assert found["batchgeneratorsv2"].verdict == "ok"
    assert found["other packages"].state.startswith(f"{len(asked) - len(doctor.ALWAYS_SHOWN) - 2} ")


def test_folders_that_are_not_set_or_missing_or_full(folders, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", str(folders / "gone"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**39, 3 * 2**30))
    found = findings(doctor._folders())
    assert (found["nnUNet_raw"].verdict, found["nnUNet_raw"].state) == ("fail", "not set")
    assert "mkdir -p" in found["nnUNet_results"].way_out
    assert found["nnUNet_preprocessed"].verdict == "warn" and "3 GiB free" in found["nnUNet_preprocessed"].state


@pytest.mark.slow
def test_the_trainer_is_looked_for_as_nnunet_does(monkeypatch):
    assert doctor._discovery(TRAINER).verdict == "ok"
    assert "typing error" in doctor._discovery("nnUNetTrainerGLIMMS").way_out
    monkeypatch.setenv("NNUNET_GLIMS_NO_DISCOVERY", "1")
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert doctor._discovery(TRAINER).way_out == "unset NNUNET_GLIMS_NO_DISCOVERY"


def test_more_loading_processes_than_cores_are_too_many(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # nnU-Net never takes more processes than that
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    (finding,) = doctor._processes()
    assert finding.verdict == "warn" and "8 cores allotted by SLURM" in finding.state and "=7" in finding.way_out
    for value, verdict in (("0", "warn"), ("-1", "fail")):
        monkeypatch.setenv("nnUNet_n_proc_DA", value)
        assert findings(doctor._processes())["nnUNet_n_proc_DA"].verdict == verdict
    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    (finding,) = doctor._processes()
    assert finding.verdict == "fail" and "'many'" in finding.state


@pytest.mark.parametrize(("kernels", "verdict"), [(object(), "ok"), (None, "warn")])
def test_kernels_for_a_gpu_are_looked_for_where_there_is_one(kernels, verdict, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("nnunet_glims.kernels.gpu.library", lambda: kernels)
    assert findings(doctor._device())["GPU kernels"].verdict == verdict


def test_little_shared_memory_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(64 * 2**20, 0, 64 * 2**20))
    found = findings(doctor._limits())
    assert "shared memory" not in found or "--shm-size" in found["shared memory"].way_out


def test_plans_are_looked_into(folders):
    found = findings(doctor._data_set("777", TRAINER, "nnUNetPlans", "3d_fullres"))
    assert {finding.verdict for finding in found.values()} <= {"ok", "warn"}
    assert "strides" in found["patch and batch"].state
    assert "M parameters" in found["network"].state
    assert "GiB in float32" in found["training memory"].state
    assert found["splits"].state == "1 folds"


def test_what_is_missing_or_broken_in_a_data_set_fails(folders):
    dataset = folders / "nnUNet_preprocessed" / DATASET
    (dataset / "splits_final.json").write_text('[{"train": ["a", "zz"], "val": ["b"]}]')
    fold = folders / f"nnUNet_results/{DATASET}/{TRAINER}__nnUNetPlans__3d_fullres/fold_0"
    fold.mkdir(parents=True)
    torch.save({"a": 1}, fold / "checkpoint_best.pth")
    (fold / "checkpoint_latest.pth").write_bytes((fold / "checkpoint_best.pth").read_bytes()[:-50])
    found = findings(doctor._data_set("777", TRAINER, "nnUNetPlans", "3d_fullres"))
    assert found["splits"].verdict == "fail" and "zz" in found["splits"].state
    assert found["fold_0/checkpoint_best.pth"].verdict == "ok"
    assert found["fold_0/checkpoint_latest.pth"].verdict == "fail"
    shutil.rmtree(dataset / "nnUNetPlans_3d_fullres")
    found = findings(doctor._data_set("777", TRAINER, "nnUNetPlans", "3d_fullres"))
    assert found["preprocessed data"].verdict == "fail" and "nnUNetv2_preprocess" in found["preprocessed data"].way_out


def test_missing_plans_and_2d_configurations_fail(folders):
    (finding,) = doctor._data_set("777", TRAINER, "nnUNetPlans_other", "3d_fullres")
    assert finding.verdict == "fail" and "nnUNetPlans_other.json" in finding.state
    (folders / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_empty.json").write_text("[]")
    (finding,) = doctor._data_set("777", TRAINER, "nnUNetPlans_empty", "3d_fullres")
    assert finding.verdict == "fail" and "nnUNetPlans_empty.json: these are no plans" in finding.state
    found = findings(doctor._data_set("777", TRAINER, "nnUNetPlans", "2d"))
    assert found["plans"].verdict == "fail" and "use 3d_fullres" in found["plans"].state


def test_the_command_exits_with_1_where_something_fails(monkeypatch, capsys):
    ill = [
        doctor.Finding("torch", "ok", "2.15"),
        doctor.Finding("nnUNet_raw", "fail", "not set", "export nnUNet_raw=…"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(ill))
    assert main(["doctor"]) == 1
    assert "export nnUNet_raw" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[1]["verdict"] == "fail"
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(ill[:1]))
    assert main(["doctor"]) == 0


def test_commands_are_not_broken_where_the_output_is_no_terminal(monkeypatch, capsys):
    command = f"export nnUNet_preprocessed=/{'long/' * 60}[of two]/nnUNet_preprocessed"
    monkeypatch.setattr(doctor, "examine", lambda *_: iter([doctor.Finding("folder", "fail", "not set", command)]))
    main(["doctor"])
    assert f"→ {command}" in [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_a_wrong_precision_variable_is_a_finding(monkeypatch):
    assert not list(doctor._precision())
    monkeypatch.setenv("NNUNET_GLIMS_PRECISION", "bf16")
    (found,) = doctor._precision()
    assert found.verdict == "ok" and "bf16" in found.state
    monkeypatch.setenv("NNUNET_GLIMS_PRECISION", "fp8")
    (found,) = doctor._precision()
    assert found.verdict == "fail" and "fp8" in found.state and found.way_out == "unset NNUNET_GLIMS_PRECISION"
