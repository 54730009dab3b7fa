"""Environments of the lowest and highest versions that pyproject.toml admits, for one Python or another.

python -m tests.environments FOLDER [--python 3.10] [--resolution lowest-direct|highest]

makes a virtual environment with such a set of versions and runs the quick part of the test suite there. uv, an extra of the
tests, finds the versions and installs them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RESOLUTIONS = ("lowest-direct", "highest")

# Their source distributions admit every Python, but only wheels can be installed without compilers and libraries.
COMPILED = (
    *("blosc2", "connected-components-3d", "contourpy", "imagecodecs", "matplotlib", "numexpr", "numpy", "onnx"),
    *("onnxruntime", "pandas", "pillow", "pydantic-core", "pyyaml", "scikit-image", "scikit-learn", "scipy"),
    *("simpleitk", "torch"),
)

# What depends on other packages' versions, without what takes long.
QUICK = (
    *("tests/architectures/test_complexity.py", "tests/architectures/test_glims.py"),
    *("tests/architectures/test_latupnet.py", "tests/architectures/test_swin_unetr.py", "tests/evaluation"),
    *("tests/experiments/test_comparison.py", "tests/export/test_conversion.py", "tests/kernels/test_kernels.py"),
    *("tests/nnunet/test_override.py", "tests/report/test_leaderboard.py", "tests/report/test_page.py"),
    *("tests/test_cli.py", "tests/doctor", "tests/test_interface.py", "tests/test_platforms.py"),
    *("tests/trainers/test_recipe_trainer.py", "tests/training"),
)


def find_python(version: str) -> Path | None:
    """The interpreter of that version, on PATH or of pyenv; None where there is none."""
    name = f"python{version}"
    candidates = [shutil.which(name), *Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}")]
    for path in candidates:
        if path is None:
            continue
        ask = [str(path), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(ask, capture_output=True, text=True)  # a shim of pyenv's may lead nowhere
        if answer.stdout.strip() == version:
            return Path(path)
    return None


def resolve(version: str, resolution: str) -> dict[str, str]:
    """Name -> version of a set that fulfils pyproject.toml with all extras of the tests, with wheels for this Python."""
    command = [
        *("uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--extra", "test"),
        *("--python-version", version, "--python-platform", "x86_64-manylinux_2_28", "--resolution", resolution),
        *(f"--only-binary={name}" for name in COMPILED),
        "pyproject.toml",
    ]
    result = subprocess.run(program(command), cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return dict(line.split("==") for line in result.stdout.splitlines() if line)


def program(command: list[str]) -> list[str]:
    """The command, with the program that is installed beside the running Python where it is."""
    beside = Path(sys.executable).with_name(command[0])
    return [str(beside) if beside.exists() else command[0], *command[1:]]


def make(folder: Path, version: str, resolution: str) -> Path:
    """A virtual environment with the set of versions and this checkout; returns its Python.

    Raises:
        RuntimeError: no interpreter of that version is found, or no such set exists.
    """
    python = find_python(version)
    if python is None:
        raise RuntimeError(f"there is no Python {version} here")
    wanted = resolve(version, resolution)
    subprocess.run(program(["uv", "venv", "--quiet", "--clear", "--python", str(python), str(folder)]), check=True)
    made = folder / "bin/python"
    listed = folder / "versions.txt"
    listed.write_text("".join(f"{name}=={number}\n" for name, number in wanted.items()))
    install = ["uv", "pip", "install", "--quiet", "--python", str(made)]
    subprocess.run(program([*install, "-r", str(listed)]), check=True)
    subprocess.run(program([*install, "--no-deps", "-e", str(ROOT)]), check=True)
    return made


def run_quick_tests(python: Path) -> int:
    """Exit code of the quick part of the suite in an environment."""
    kinds = "not (slow or long or browser or slurm or gpu)"
    command = [python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", kinds]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return subprocess.run([*command, *QUICK], cwd=ROOT, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", choices=PYTHONS, help="its version (default: the lowest that is found)")
    parser.add_argument("--resolution", choices=RESOLUTIONS, default="lowest-direct")
    options = parser.parse_args()
    found = options.python or next(version for version in PYTHONS if find_python(version) is not None)
    print(f"Python {found}, {options.resolution}", flush=True)
    return run_quick_tests(make(options.folder, found, options.resolution))


if __name__ == "__main__":
    sys.exit(main())
