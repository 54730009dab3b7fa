"""The house: what may import what, how long a module may be, and what a room must not know."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "nnunet_glims"
FOLDERS = {PACKAGE: ROOT / PACKAGE, f"{PACKAGE}.trainers": ROOT / "trainers"}
"""Installed package -> folder of the repository."""

LEVELS = (
    ("__init__", "__main__", "found_by_nnunet"),
    ("cli",),
    ("doctor", "demo", "explanation", "experiments"),
    ("report", "export", "postprocessing", "datasets"),
    ("trainers",),
    ("nnunet",),
    ("evaluation",),
    ("networks", "architectures"),
    ("training",),
    ("kernels",),
    ("topology", "images", "geometry", "processes", "validation", "releases"),
    ("image_formats",),
    ("locks", "files", "documents", "errors"),
)
"""Rooms from the top to the bottom of the house. A room may import those of its own level and those below."""
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MOST_LINES = 400
MOST_LOOSE_MODULES = 12


@cache
def modules() -> dict[str, Path]:
    """Every module of the installed package: its name, and its file in the repository."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """The room that a module of the package lies in."""
    parts = module.split(".")
    if "found_by_nnunet" in parts:
        return "found_by_nnunet"
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def imports(module: str) -> frozenset[str]:
    """Modules that a module imports anywhere in its file, also within functions; names of classes are left out."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (above, node.module) if part)
            found.add(source)
            found.update(f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in modules())
    return frozenset(found - {PACKAGE})  # which has the version


def rooms_imported(module: str) -> set[str]:
    """Other rooms of the package that a module imports."""
    inner = {name for name in imports(module) if name.startswith(f"{PACKAGE}.")}
    return {room_of(name) for name in inner} - {room_of(module)}


def modules_of(room: str) -> list[str]:
    return [module for module in modules() if room_of(module) == room]


def test_imports_are_read_as_python_reads_them():
    assert f"{PACKAGE}.kernels.cpu" in imports(f"{PACKAGE}.architectures.base")
    assert f"{PACKAGE}.errors" in imports(f"{PACKAGE}.architectures.base")
    assert f"{PACKAGE}.kernels.ops" in imports(f"{PACKAGE}.architectures.dilated")  # from the package import the module
    assert "numpy" in imports(f"{PACKAGE}.trainers.robust_trainer")


def test_every_room_has_its_level():
    rooms = {room_of(module) for module in modules()}
    assert rooms - set(LEVEL_OF) == set(), "a new room: give it its level in LEVELS, and docs/contributing.md its line"


@pytest.mark.parametrize("room", [room for rooms in LEVELS for room in rooms])
def test_imports_run_downwards(room):
    upwards = {
        f"{module} imports {other}"
        for module in modules_of(room)
        for other in rooms_imported(module)
        if LEVEL_OF.get(other, len(LEVELS)) < LEVEL_OF[room]
    }
    assert upwards == set()


def test_no_rooms_import_each_other():
    imported = {room: set().union(*map(rooms_imported, modules_of(room))) for room in LEVEL_OF}

    def reached(room: str, on_the_way: frozenset[str] = frozenset()) -> set[str]:
        others = imported[room] - on_the_way
        return others.union(*(reached(other, on_the_way | others) for other in others))

    assert [room for room in imported if room in reached(room)] == []


def test_modules_are_short():
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lines.items() if n > MOST_LINES and room_of(name) != "kernels"} == {}


def test_few_modules_lie_outside_of_rooms():
    loose = [path.stem for path in FOLDERS[PACKAGE].glob("*.py") if not path.stem.startswith("__")]
    assert len(loose) <= MOST_LOOSE_MODULES, loose


def test_the_guide_for_contributors_names_every_module_outside_of_rooms():
    guide = (ROOT / "docs/contributing.md").read_text()
    loose = [path.name for path in FOLDERS[PACKAGE].glob("*.py") if not path.stem.startswith("__")]
    assert [name for name in loose if f"{name}`" not in guide] == []


def test_production_code_replaces_nothing_with_mocks():
    assert [name for name in modules() if any(module.split(".")[0] == "unittest" for module in imports(name))] == []


def test_evaluation_does_not_mention_nnunet():
    """Label maps go in and numbers come out, whoever made the label maps; not even the texts say otherwise."""
    mentions = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in map(modules().get, modules_of("evaluation"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"nn-?u-?net(?![-_]glims\b)", line, re.IGNORECASE)
    ]
    assert mentions == []


@pytest.mark.parametrize(
    ("room", "foreign"),
    [
        ("architectures", {"nnunetv2"}),
        ("kernels", {"nnunetv2"}),
        ("evaluation", {"nnunetv2", "torch"}),
        ("releases", {"nnunetv2", "torch"}),
        ("report", {"nnunetv2"}),
        ("networks", {"nnunetv2"}),
    ],
)
def test_rooms_that_must_not_know_a_library_do_not_import_it(room, foreign):
    found = {
        f"{module} imports {name}"
        for module in modules_of(room)
        for name in imports(module)
        if name.split(".")[0] in foreign
    }
    assert found == set()


def test_releases_import_files_and_errors_alone():
    assert set().union(*map(rooms_imported, modules_of("releases"))) <= {"files", "errors"}


def is_import(node: ast.stmt) -> bool:
    """Is the statement an import, a docstring or a list of public names?"""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    public = isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]
    return docstring or public or isinstance(node, ast.Import | ast.ImportFrom)


def test_no_module_is_left_for_old_imports():
    """A package's __init__ may hand on what its modules define; a module that does nothing else is a leftover."""
    passing_on = [
        name
        for name, path in modules().items()
        if path.name != "__init__.py"
        and room_of(name) != "found_by_nnunet"
        and all(map(is_import, ast.parse(path.read_text()).body))
    ]
    kept_for_others = [
        f"{name}: {line.strip()}"
        for name, path in modules().items()
        for line in path.read_text().splitlines()
        if PACKAGE in line and "F401" in line and room_of(name) != "found_by_nnunet"
    ]
    assert passing_on == []
    assert kept_for_others == []
