"""How nnU-Net finds the trainers; these run new Python processes, as users do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_glims
from nnunet_glims.nnunet import discovery

FIND = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
    "import nnunet_glims.trainers as installed; "
    "print([find(name) is getattr(installed, name) for name in installed.__all__])"
)


def python(code, *options, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in (discovery.VARIABLE, discovery.OPT_OUT)}
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**clean, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_our_folder_is_appended_once_behind_the_users():
    ours = discovery.TRAINER_FOLDER
    assert discovery.extended("") == ours
    assert discovery.extended("/mine") == f"/mine{os.pathsep}{ours}"
    assert discovery.extended(f"/mine{os.pathsep}{ours}") == f"/mine{os.pathsep}{ours}"
    assert discovery.extended(f"{ours}{os.pathsep}/mine") == f"{ours}{os.pathsep}/mine"


def test_opting_out_leaves_the_variable_alone():
    for value, found in (("1", False), ("yes", False), ("0", True), ("", True)):
        environment = {discovery.OPT_OUT: value}
        discovery.announce(environment)
        assert (discovery.VARIABLE in environment) == found


def test_a_new_process_has_the_variable_and_imported_nothing_heavy():
    result = python(
        "import os, sys; print(os.environ['nnUNet_extTrainer']); "
        "print([m for m in ('torch', 'numpy', 'nnunetv2', 'pydantic') if m in sys.modules])"
    )
    assert result.stdout.splitlines() == [discovery.TRAINER_FOLDER, "[]"], result.stderr


@pytest.mark.slow
def test_nnunet_finds_the_very_classes_of_the_package():
    result = python(FIND)
    assert result.stdout.splitlines()[-1] == "[True, True, True, True]", result.stderr


@pytest.mark.slow
def test_trainers_survive_a_spawned_process():
    result = python(
        "import torch.multiprocessing as mp\n"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "if __name__ == '__main__':\n"
        "    with mp.get_context('spawn').Pool(1) as pool:\n"
        "        print('FOUND', pool.apply(find, ('nnUNetTrainerGLIMS',)).__name__)\n"
    )
    assert "FOUND nnUNetTrainerGLIMS" in result.stdout, result.stderr


def test_another_environment_with_the_inherited_variable_searches_on():
    # There the module in our folder is imported, but the package is not installed.
    shim = Path(discovery.TRAINER_FOLDER) / "nnunet_glims_trainers.py"
    result = python(f"import runpy; print(runpy.run_path({str(shim)!r}).get('nnUNetTrainerGLIMS'))", "-S", "-I")
    assert result.stdout.strip() == "None", result.stderr


@pytest.mark.parametrize("damage", ["missing", "syntax error", "half removed"])
def test_a_broken_package_never_breaks_python(tmp_path, damage):
    import sysconfig

    line = (Path(sysconfig.get_path("purelib")) / "nnunet_glims.pth").read_text()
    (tmp_path / "nnunet_glims.pth").write_text(line)
    package = tmp_path / "nnunet_glims"
    if damage != "missing":
        (package / "nnunet").mkdir(parents=True)
        (package / "nnunet/discovery.py").write_text("def announce(:" if damage == "syntax error" else "raise OSError")
    result = python(f"import site; site.addsitedir({str(tmp_path)!r}); print('fine')", "-S", "-I")
    assert (result.stdout.strip(), result.stderr) == ("fine", "")


def test_the_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert version("nnunet-glims") == nnunet_glims.__version__
