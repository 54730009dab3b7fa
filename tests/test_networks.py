"""The registry: every question about trainers and networks has one answer, and other packages can add theirs."""

import subprocess
import sys

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

PACKAGE = """
from nnunet_glims.networks import Network
from nnunet_glims.training.recipes import Recipe

SMALL = Network(
    name="SmallNet", path="other_package_network.SmallNet", trainer="nnUNetTrainerSmallNet", recipe=Recipe(epochs=7),
    paper="arXiv 0000.00000", licence="MIT", parameters_m=0.1, gflops=0.2, published_for=(1, 2, (32, 32, 32)),
    trainers_module="other_package_trainers", stages=2, halvings=1,
)
TAKEN = Network(
    name="Other", path="other_package_network.SmallNet", trainer="nnUNetTrainerGLIMS", recipe=Recipe(), paper="",
    licence="", parameters_m=1, gflops=1, published_for=(1, 2, (32, 32, 32)),
)
NUMBER = 3
"""
NETWORK = """
from torch import nn
from nnunet_glims.architectures.base import SegmentationNetwork
from nnunet_glims.topology import check_strides

class SmallNet(SegmentationNetwork):
    def __init__(self, input_channels, num_classes, patch_size, strides, width: int = 4, deep_supervision: bool = False):
        super().__init__(input_channels, num_classes)
        self.strides = check_strides(strides, 2)
        self.decoder = nn.Module()
        self.decoder.deep_supervision = deep_supervision
        self.decoder.seg_layers = nn.ModuleList([nn.Conv3d(width, num_classes, 1)])
        self.layer = nn.Conv3d(input_channels, width, 3, padding=1)

    def logits(self, x):
        return [self.decoder.seg_layers[0](self.layer(x))]
"""
TRAINER = """
from nnunet_glims.networks import trained_by
from nnunet_glims.trainers.recipe_trainer import RecipeTrainer

class nnUNetTrainerSmallNet(RecipeTrainer):
    light_network, light_network_arguments = trained_by("nnUNetTrainerSmallNet")
"""
ENTRY_POINTS = """
[nnunet_glims.networks]
absent = other_package.ABSENT
broken = other_package_that_is_not_there:X
number = other_package:NUMBER
small = other_package:SMALL
taken = other_package:TAKEN
"""


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """An installed package with one good network and four that cannot be used."""
    information = tmp_path / "other_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    for name, text in (("", PACKAGE), ("_network", NETWORK), ("_trainers", TRAINER)):
        (tmp_path / f"other_package{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    networks.cache_clear()
    yield
    networks.cache_clear()
    for name in ("", "_network", "_trainers"):
        sys.modules.pop(f"other_package{name}", None)


def test_another_package_adds_a_network_and_its_mistakes_are_named(other_package):
    with pytest.warns(RuntimeWarning) as warnings:
        assert [network.name for network in networks()] == ["GLIMS", "LATUPNet", "SwinUNETR", "SmallNet"]
    texts = [str(warning.message) for warning in warnings]
    assert len(texts) == 4 and all("'other-package' is left out" in text for text in texts)
    for text, reason in zip(
        texts, ("'absent'", "No module named", "a int, not", "'nnUNetTrainerGLIMS' belongs to GLIMS")
    ):
        assert reason in text
    assert network_named("smallnet").recipe.epochs == 7
    assert network_of_class("other_package_network.SmallNet").name == "SmallNet"


@pytest.mark.filterwarnings("ignore:the network")
def test_plans_are_made_for_the_network_of_another_package_and_nnunet_finds_its_trainer(other_package, tmp_path):
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    from nnunet_glims.nnunet.discovery import TRAINER_FOLDER
    from nnunet_glims.nnunet.plans.configuration import complete_configuration
    from tests.preprocessed import make_plans

    found = recursive_find_python_class(
        TRAINER_FOLDER, "nnUNetTrainerSmallNet", None, cleanup_imports_from_base_folder=True
    )
    assert found.light_network is network_of_trainer("nnUNetTrainerSmallNet")
    assert recursive_find_python_class(TRAINER_FOLDER, "nnUNetTrainerNobodys", None) is None
    configuration = make_plans()["configurations"]["3d_fullres"]
    del configuration["training"]
    completed = complete_configuration(configuration, *trained_by("nnUNetTrainerSmallNet"), "test")
    assert completed["training"]["epochs"] == 7
    assert completed["architecture"]["network_class_name"] == "other_package_network.SmallNet"
    assert completed["architecture"]["arch_kwargs"]["strides"] == [[1, 1, 1], [2, 2, 2]]


def test_a_class_that_is_not_where_it_is_said_to_be_is_named(other_package):
    network = registry.Network("X", "other_package.Missing", "T", BUILT_IN[0].recipe, "", "", 1, 1, (1, 2, (8, 8, 8)))
    with pytest.raises(UsageError, match=r"network X: other_package.Missing cannot be imported"):
        network.load_class()
