"""Every input of the quick commands, damaged at a few of the places at which benchmarks/reliability damages them all."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.reliability import damage, scenes
from benchmarks.reliability.commands import COMMANDS, result_of
from benchmarks.reliability.runner import Outcome
from nnunet_glims.cli import main

QUICK = [command for command in COMMANDS if not command.is_slow and command.name != "doctor"]
PLACES = (3, 14, 30)
"""Which of the places: they are chosen so that files are cut, bytes changed, and values of JSON replaced."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A function that returns the folder of a scene, which is made when it is first asked for."""
    root = tmp_path_factory.mktemp("scenes")
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def made(name):
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in scenes.environment(root / name).items():
                patch.setenv(variable, value)
            return root / name if (root / name).exists() else scenes.build(name, root)

    yield made
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a command's arguments in a folder, in this process."""

    def run_in(arguments, work):
        for variable, value in scenes.environment(work).items():
            monkeypatch.setenv(variable, value)
        monkeypatch.chdir(work)
        capsys.readouterr()
        started = time.monotonic()
        code = main(arguments)
        printed = capsys.readouterr()
        return Outcome(code, printed.out + printed.err, time.monotonic() - started, 0)

    return run_in


@pytest.mark.parametrize("command", QUICK, ids=[command.name for command in QUICK])
def test_a_damaged_input_is_refused_or_changes_nothing(command, scene, run, tmp_path):
    work = Path(shutil.copytree(scene(command.scene), tmp_path / "sound"))
    outcome = run(command.arguments, work)
    assert outcome.code == 0, outcome.text
    expected = result_of(command, work, outcome.text)
    wrong = {}
    for file in command.reads:
        everywhere = list(damage.damages(file, (scene(command.scene) / file).read_bytes(), seed=1))
        for place in PLACES:
            work = Path(shutil.copytree(scene(command.scene), tmp_path / f"{len(list(tmp_path.iterdir()))}"))
            damaged = everywhere[place]
            found = damage.judged(command, file, damaged, work, expected, lambda work: run(command.arguments, work))
            if found and not found.startswith("fine"):
                wrong[f"{file}: {damaged.what}"] = found
    assert wrong == {}


def test_the_exception_is_what_nothing_can_tell_from_a_sound_file():
    image = bytes(range(100)) * 10
    another = damage.is_another_input
    assert another("a.nii", image, image[:500] + b"\0" + image[501:])
    assert not another("a.nii", image, image[:300] + b"\xff" + image[301:]), "the header"
    assert not another("a.nii", image, image[:500])
    assert not another("a.nii.gz", image, image[:500] + b"\0" + image[501:]), "a compressed image has a checksum"

    def texts(before, after):
        return another("a.json", json.dumps(before).encode(), json.dumps(after).encode())

    assert texts({"lr": 0.5}, {"lr": 1}) and texts({"a": "b"}, {"a": "c"}) and texts({"a": [1, 2]}, {"a": [1]})
    assert texts({"labels": {"liver": 1}}, {"labels": {"lever": 1}}), "a name that the user chose"
    assert not texts({"n": 1}, {"n": 1.5}) and not texts({"a": "b"}, {"a": None}) and not texts({"lr": 1}, {"rl": 1})
    assert not another("a.json", b'{"a": 1}', b'{"a": 1')


def test_damage_is_the_same_for_the_same_seed_and_other_for_another():
    content = json.dumps({"labels": {"background": 0, "liver": 1}, "names": ["a", "b"]}).encode()
    made = [[entry.content for entry in damage.damages("a.json", content, seed)] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert len(made[0]) == damage.PLACES and content not in made[0]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_input_damaged_at_every_place(tmp_path):
    command = [sys.executable, "-m", "benchmarks.reliability", "damage", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "damage.json").read_text())["not survived"] == []
