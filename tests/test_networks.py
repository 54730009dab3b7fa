"""The registry: every question about trainers and networks has one answer, and other packages can add theirs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_glims import networks as registry
from nnunet_glims.errors import UsageError
from nnunet_glims.networks import BUILT_IN, network_named, network_of_class, network_of_trainer, networks, trained_by

TRAINERS = [(network, trainer) for network in BUILT_IN for trainer in network.trainers]


@pytest.mark.parametrize(("network", "trainer"), TRAINERS, ids=lambda value: getattr(value, "name", value))
def test_every_registered_trainer_trains_its_network(network, trainer):
    from nnunet_glims import trainers

    trainer_class = network.load_trainer(trainer)
    assert trainer_class is getattr(trainers, trainer)
    assert trainer_class.light_network is network
    assert trainer_class.light_network_arguments == network.trainers[trainer]
    assert network_of_trainer(trainer) is network


def test_every_public_trainer_is_registered():
    from nnunet_glims import trainers

    assert sorted(trainers.__all__) == sorted(trainer for _, trainer in TRAINERS)


def test_networks_are_found_by_name_class_and_trainer():
    glims = network_named("GLIMS")
    assert glims is network_named("glims") is network_of_class("nnunet_glims.architectures.GLIMS")
    assert glims.load_class().__name__ == "GLIMS"
    assert trained_by("nnUNetTrainerGLIMSReleased") == (glims, {"released": True})
    assert trained_by("nnUNetTrainerGLIMS") == (glims, {})
    # A trainer of the user's own whose name begins like one of ours is another trainer.
    assert network_of_trainer("nnUNetTrainerGLIMSOfMine") is None
    assert network_of_class("dynamic_network_architectures.architectures.unet.PlainConvUNet") is None
    with pytest.raises(UsageError, match="'glimz' is unknown: did you mean 'GLIMS'"):
        network_named("glimz")
    with pytest.raises(UsageError, match="did you mean 'nnUNetTrainerLATUPNet'"):
        trained_by("nnUNetTrainerLatupNett")


def test_the_trainer_follows_from_the_networks_arguments():
    glims = network_named("GLIMS")
    assert glims.trainer_for({"released": True, "feature_size": 12}) == "nnUNetTrainerGLIMSReleased"
    assert glims.trainer_for({"released": False}) == glims.trainer_for({}) == "nnUNetTrainerGLIMS"


def test_the_registry_imports_neither_torch_nor_nnunet():
    code = (
        "import sys; from nnunet_glims.networks import network_named; network_named('GLIMS'); "
        "print([name for name in ('torch', 'nnunetv2', 'monai', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# ---- networks of other packages

UNUSABLE = """
from nnunet_glims.networks import BUILT_IN, Network

TAKEN = Network("Other", "x.Other", "nnUNetTrainerGLIMS", BUILT_IN[0].recipe, "", "", 1, 1, (1, 2, (32, 32, 32)))
NUMBER = 3
"""
UNUSABLE_ENTRY_POINTS = """
absent = other_package.registration:ABSENT
broken = other_package.not_there:X
number = other_package.unusable:NUMBER
taken = other_package.unusable:TAKEN
"""


def code_blocks(page, language):
    return re.findall(
        rf"```{language}\n(.*?)```", (Path(__file__).parent.parent / "docs" / page).read_text(), re.DOTALL
    )


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """The package that the documentation walks through, installed, and four registrations that cannot be used."""
    (tmp_path / "other_package").mkdir()
    for block in code_blocks("networks.md", "python"):
        if block.startswith("# other_package/"):
            (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    (tmp_path / "other_package/unusable.py").write_text(UNUSABLE)
    (entry_point,) = code_blocks("networks.md", "toml")
    group, line = entry_point.strip().splitlines()
    assert group == f'[project.entry-points."{registry.ENTRY_POINT_GROUP}"]'
    information = tmp_path / "other_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    text = "\n".join([f"[{registry.ENTRY_POINT_GROUP}]", line.replace('"', ""), UNUSABLE_ENTRY_POINTS])
    (information / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    networks.cache_clear()
    yield
    networks.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "other_package"]:
        del sys.modules[name]


def test_another_package_adds_a_network_and_its_mistakes_are_named(other_package):
    with pytest.warns(RuntimeWarning) as warnings:
        assert [network.name for network in networks()] == ["GLIMS", "LATUPNet", "SwinUNETR", "SmallNet"]
    texts = [str(warning.message) for warning in warnings]
    assert len(texts) == 4 and all("of the package 'other-package' is left out" in text for text in texts)
    reasons = (
        "'ABSENT'",
        "No module named 'other_package.not_there'",
        "leads to a int",
        "'nnUNetTrainerGLIMS' belongs to GLIMS",
    )
    for text, reason in zip(texts, reasons, strict=True):
        assert reason in text
    assert network_named("smallnet") is network_of_class("other_package.network.SmallNet")


@pytest.mark.filterwarnings("ignore:the network")
def test_stock_nnunet_finds_the_trainer_of_another_package(other_package):
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    from nnunet_glims.nnunet.discovery import TRAINER_FOLDER

    def find(name):
        return recursive_find_python_class(TRAINER_FOLDER, name, None, cleanup_imports_from_base_folder=True)

    assert find("nnUNetTrainerSmallNet").light_network is network_named("SmallNet")
    assert find("nnUNetTrainerGLIMS").light_network is network_named("GLIMS")
    assert find("nnUNetTrainerOfNobody") is None


@pytest.mark.filterwarnings("ignore:the network")
def test_plans_are_made_and_checked_for_the_network_of_another_package(other_package, tmp_path):
    from nnunet_glims.nnunet.plans.override import apply_override
    from tests.preprocessed import make_plans

    folder = tmp_path / "Dataset777_Cubes"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(make_plans()))
    override = tmp_path / "mine.json"
    content = {"description": "", "source": "", "network": "SmallNet", "network_arguments": {"width": 6}}
    override.write_text(json.dumps(content))
    applied = apply_override(folder, str(override))
    assert applied.trainer == "nnUNetTrainerSmallNet"
    written = json.loads(applied.path.read_text())["configurations"]["3d_fullres"]
    assert written["architecture"]["network_class_name"] == "other_package.network.SmallNet"
    assert written["architecture"]["arch_kwargs"]["strides"] == [[1, 1, 1], [2, 2, 2]]
    assert written["training"]["deep_supervision"] is False
    override.write_text(json.dumps({**content, "network_arguments": {"width": "wide"}}))
    with pytest.raises(UsageError, match=r"network_arguments: width: a whole number is wanted, not the text .wide."):
        apply_override(folder, str(override))
    override.write_text(json.dumps({**content, "network_arguments": {"widht": 6}}))
    with pytest.raises(UsageError, match="network_arguments: widht: unknown key; did you mean 'width'"):
        apply_override(folder, str(override))


def test_a_class_that_is_not_where_it_is_said_to_be_is_named():
    network = registry.Network("X", "json.Missing", "T", BUILT_IN[0].recipe, "", "", 1, 1, (1, 2, (8, 8, 8)))
    with pytest.raises(UsageError, match=r"network X: json.Missing cannot be imported"):
        network.load_class()
