import io
import json
import os
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

from nnunet_glims.cli import COMMANDS, main
from nnunet_glims.cli.progress import progress_on
from nnunet_glims.nnunet import discovery
from nnunet_glims.nnunet.plans.override import Override
from tests.preprocessed import DATASET, write_preprocessed


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return write_preprocessed(tmp_path)


def test_help_names_every_command_and_imports_nothing_heavy(capsys):
    for arguments in (["--help"], *([command, "--help"] for command in COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    code = (
        "import sys, contextlib, io\nfrom nnunet_glims.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['--help'])\n"
        "print([m for m in ('torch', 'numpy', 'nnunetv2', 'pydantic', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_env_prints_a_line_the_shell_understands(capsys, monkeypatch):
    monkeypatch.setenv(discovery.VARIABLE, "/my trainers")
    assert main(["env"]) == 0
    line = capsys.readouterr().out
    result = subprocess.run(
        ["sh", "-c", f'{line}\nprintf %s "$nnUNet_extTrainer"'], capture_output=True, text=True, env={}
    )
    assert result.stdout == f"/my trainers{os.pathsep}{discovery.TRAINER_FOLDER}"
    assert len(shlex.split(line)) == 2


def test_plans_list_show_and_schema(capsys):
    assert main(["plans", "list"]) == 0
    listed = capsys.readouterr().out
    assert "glims_brats " in listed
    assert "latupnet_paper " in listed
    assert main(["plans", "show", "glims_brats"]) == 0
    assert Override(**json.loads(capsys.readouterr().out)).patch_size == [96, 96, 96]
    assert main(["plans", "schema"]) == 0
    assert "patch_size" in json.loads(capsys.readouterr().out)["properties"]


@pytest.mark.parametrize("dataset", [DATASET, "777"])
def test_plans_apply_says_what_it_wrote_and_how_to_train(preprocessed, capsys, dataset):
    assert main(["plans", "apply", "cpu_demo", "-d", dataset]) == 0
    out = capsys.readouterr().out
    assert (preprocessed / "nnUNetPlans_cpu_demo.json").exists()
    assert f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerGLIMS -p nnUNetPlans_cpu_demo" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plans", "apply", "cpu_demo", "-d", "778"], "data set '778'"),
        (["plans", "apply", "cpu_demmo", "-d", "777"], "did you mean 'cpu_demo'"),
        (["plans", "apply", "cpu_demo", "-d", "777", "-c", "2d"], "use 3d_fullres"),
        (["plans", "show", "nothing.json"], "nothing.json: there is no such file"),
        (["demo", "--data", "/nowhere"], "/nowhere: this is no raw data set"),
    ],
)
def test_wrong_use_is_exit_code_2_and_one_message(preprocessed, capsys, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_without_nnunets_variable_the_error_names_it(capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert main(["plans", "apply", "cpu_demo", "-d", "777"]) == 2
    assert "nnUNet_preprocessed is not set" in capsys.readouterr().err


def test_a_failure_is_exit_code_1_and_debug_shows_where(preprocessed, capsys, monkeypatch):
    def fail(*arguments):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", fail)
    assert main(["plans", "apply", "cpu_demo", "-d", "777"]) == 1
    assert "OSError: disk on fire (--debug shows where)" in capsys.readouterr().err
    assert main(["--debug", "plans", "apply", "cpu_demo", "-d", "777"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_progress_is_shown_on_a_terminal_only():
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        assert list(progress_on(console)(iter([1, 2]), "Evaluating", 2)) == [1, 2]
        shown[terminal] = console.file.getvalue()
    assert "Evaluating" in shown[True] and shown[False] == ""


@pytest.mark.parametrize(
    "command",
    [
        "plans apply FOLDER.json -d Dataset001_Toy",
        "compare status FOLDER.json",
        "postprocess FOLDER.json -o OUT --preset FOLDER.json",
        "leaderboard A=FOLDER.json -o FILE",
        "confusion A=FOLDER.json -o FILE",
        "demo --out FILE",
        "predict-onnx FOLDER.json FOLDER.json -o FILE",
    ],
)
def test_a_folder_for_a_file_and_a_file_for_a_folder_are_wrong_use(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset001_Toy").mkdir()
    (tmp_path / "FOLDER.json").mkdir()
    (tmp_path / "FILE").write_text("mine")
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert "FOLDER.json" in error or "FILE" in error
    assert "Error:" not in error and (tmp_path / "FILE").read_text() == "mine"
