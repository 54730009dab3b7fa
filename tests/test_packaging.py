"""The wheel, installed in an environment of its own beside this one's nnU-Net and torch."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(*command, **options):
    environment = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"}
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        timeout=600,
        **options,
    )
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # setuptools works in the folder of the source, where other tests may look around or install it.
    kept = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "site", "htmlcov", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", ignore=kept)
    run(sys.executable, "-m", "build", "--outdir", folder, source)
    return next(folder.glob("*.whl"))


def test_it_holds_trainers_overrides_and_the_start_up_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "nnunet_glims.pth" in names
    kinds = (
        ("trainers", "*.py"),
        ("plans_overrides", "*.json"),
        ("nnunet_glims", "**/*.py"),
        ("nnunet_glims", "**/*.[ch]"),
    )
    for folder, pattern in kinds:
        for file in (ROOT / folder).glob(pattern):
            inside = file.relative_to(ROOT).as_posix()
            assert (inside if folder == "nnunet_glims" else f"nnunet_glims/{inside}") in names
    assert not any(name.startswith(("tests", "benchmarks", "trainers", "plans_overrides")) for name in names)


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(request, wheel, tmp_path_factory):
    """Python of an environment with only our package, which sees nnU-Net where this one has it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "zz_nnunet.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    target = [wheel] if request.param == "wheel" else ["-e", ROOT]
    run(python, "-m", "pip", "install", "--no-deps", *target)
    yield python
    run(python, "-m", "pip", "uninstall", "-y", "nnunet-glims")
    assert not (site / "nnunet_glims.pth").exists()
    assert not (site / "nnunet_glims").exists()
    assert run(python, "-c", "import os; print(os.environ.get('nnUNet_extTrainer'))").strip() == "None"


def test_stock_nnunet_finds_the_trainers_there(environment):
    out = run(
        environment,
        "-c",
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
        "import nnunet_glims.trainers as t; "
        "same = [find(name) is getattr(t, name) for name in t.__all__]; print(t.__file__, same, sep='\\n')",
    )
    *_, installed_from, same = out.splitlines()
    assert same == "[True, True, True, True]"
    assert Path(installed_from).is_relative_to(environment.parent.parent) or Path(installed_from).is_relative_to(ROOT)


def test_the_command_is_there_with_its_overrides(environment):
    assert "glims_brats" in run(environment.with_name("nnunet-glims"), "plans", "list")
