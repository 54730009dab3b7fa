"""The versions that pyproject.toml admits can be had, for every Python, and the package runs with them."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.environments import PYTHONS, RESOLUTIONS, ROOT, find_python, make, resolve, run_quick_tests

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = [
    requirement
    for text in (*PROJECT["dependencies"], *EXTRAS["swinunetr"], *EXTRAS["onnx"], *EXTRAS["test"])
    if (requirement := Requirement(text)).name != PROJECT["name"]
]
ALL = [*INSTALLED, *(Requirement(text) for text in (*EXTRAS["docs"], *EXTRAS["lint"]))]
FLOORS = {
    requirement.name: next((Version(one.version) for one in requirement.specifier if one.operator == ">="), None)
    for requirement in ALL
}


def test_every_requirement_has_a_floor():
    assert [name for name, floor in FLOORS.items() if floor is None] == []


def test_the_classifiers_name_the_pythons_that_are_tried():
    named = [text.rpartition(" :: ")[2] for text in PROJECT["classifiers"]]
    assert [name for name in named if name.startswith("3.")] == list(PYTHONS)


@pytest.mark.long
def test_every_python_has_a_lowest_and_a_highest_set():
    """Resolved, not installed: this needs the package index."""
    choices = list(product(PYTHONS, RESOLUTIONS))
    with ThreadPoolExecutor() as pool:
        sets = dict(zip(choices, pool.map(lambda choice: resolve(*choice), choices)))
    for choice, found in sets.items():
        versions = {canonicalize_name(name): Version(number) for name, number in found.items()}
        for requirement in INSTALLED:
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier, (choice, requirement.name)
    lowest = sets[PYTHONS[0], "lowest-direct"]
    for requirement in INSTALLED:  # a floor that no set of versions has is a false one
        got = Version(lowest[canonicalize_name(requirement.name)])
        assert got.release[:2] == FLOORS[requirement.name].release[:2], requirement.name


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("version", PYTHONS)
def test_the_quick_tests_pass_with_every_python_that_is_found(version, resolution):
    if find_python(version) is None:
        pytest.skip(f"there is no Python {version} here")
    with tempfile.TemporaryDirectory() as folder:
        assert run_quick_tests(make(Path(folder), version, resolution)) == 0
