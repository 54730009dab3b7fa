"""The registry of networks: which trainer trains which network, with which fixed arguments and which recipe.

All code that needs these relations uses this module. Other packages add their networks by an entry point of the group
`nnunet_glims.networks`; docs/networks.md shows how. Importing this module imports neither torch nor nnU-Net.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.training import recipes
from nnunet_glims.training.recipes import Recipe
from nnunet_glims.validation import nearest

ENTRY_POINT_GROUP = "nnunet_glims.networks"


@dataclass(frozen=True)
class Network:
    """One network, its trainers, and what is published about it.

    Attributes:
        name: how overrides and commands name it.
        path: import path of its class, as it stands in plans files.
        trainer: trainer class, which users give to `-tr`.
        recipe: how this trainer trains the network, unless the plans say otherwise.
        paper: where the network is described.
        licence: licence of the authors' code, and whether any of it is used here.
        parameters_m: millions of parameters as published.
        gflops: billions of floating-point operations of a forward pass, as published.
        published_for: input of these figures, as (channels, classes, patch size).
        results: published segmentation results, each with the data they were measured on.
        variants: further trainers of the same network, each with the constructor arguments on which it insists.
        trainers_module: import path of the module that has the trainer classes.
        stages: number of resolutions whose strides follow the data's spacing; None where the strides are fixed.
        halvings: number of times that each side of a patch should be divisible by two.
        checkpointing: values of the constructor argument of that name, the fastest first; empty if there is no such argument.
    """

    name: str
    path: str
    trainer: str
    recipe: Recipe
    paper: str
    licence: str
    parameters_m: float
    gflops: float
    published_for: tuple[int, int, tuple[int, int, int]]
    results: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    trainers_module: str = "nnunet_glims.trainers"
    stages: int | None = None
    halvings: int = 5
    checkpointing: tuple[str | bool, ...] = ()

    @property
    def trainers(self) -> dict[str, Mapping[str, Any]]:
        """Every trainer of the network with the constructor arguments on which it insists."""
        return {self.trainer: {}, **self.variants}

    def trainer_for(self, arguments: Mapping[str, Any]) -> str:
        """Return the trainer for these constructor arguments: of those whose fixed arguments agree, the one with the most."""
        suitable = [
            (len(fixed), name)
            for name, fixed in self.trainers.items()
            if all(key in arguments and arguments[key] == value for key, value in fixed.items())
        ]
        return max(suitable, key=lambda pair: pair[0])[1]

    def load_class(self) -> type:
        """Return the network's class; this imports torch. Raise `UsageError` if it cannot be imported."""
        return _load(self.path, f"network {self.name}")

    def load_trainer(self, trainer: str) -> type:
        """Return the class of one of the network's trainers; this imports nnU-Net. Raise `UsageError` if the import fails."""
        return _load(f"{self.trainers_module}.{trainer}", f"trainer {trainer}")


BUILT_IN = (
    Network(
        name="GLIMS",
        path="nnunet_glims.architectures.GLIMS",
        trainer="nnUNetTrainerGLIMS",
        recipe=recipes.GLIMS,
        paper="arXiv 2404.17854",
        licence="no code of the authors is used",
        parameters_m=47.16,
        gflops=72.30,
        published_for=(4, 3, (96, 96, 96)),
        results=("BraTS 2023 validation: Dice WT 0.9219, TC 0.8775, ET 0.8318 (arXiv 2403.09942)",),
        variants={"nnUNetTrainerGLIMSReleased": {"released": True}},
        stages=6,
        halvings=4,
        checkpointing=("none", "aggregators", "stages"),
    ),
    Network(
        name="LATUPNet",
        path="nnunet_glims.architectures.LATUPNet",
        trainer="nnUNetTrainerLATUPNet",
        recipe=recipes.LATUPNET,
        paper="arXiv 2404.05911",
        licence="the authors' code is AGPL; none of it is used",
        parameters_m=3.07,
        gflops=15.79,
        published_for=(3, 4, (128, 128, 128)),
        results=(
            "BraTS 2020: Dice WT 0.8841, TC 0.8382, ET 0.7367",
            "BraTS 2021: Dice WT 0.9029, TC 0.8954, ET 0.8392",
        ),
        stages=4,
        halvings=3,
    ),
    Network(
        name="SwinUNETR",
        path="nnunet_glims.architectures.SwinUNETR",
        trainer="nnUNetTrainerSwinUNETR",
        recipe=recipes.SWIN_UNETR,
        paper="arXiv 2201.01266",
        licence="MONAI's implementation (Apache-2.0), an optional dependency",
        parameters_m=61.98,
        gflops=394.84,
        published_for=(4, 3, (96, 96, 96)),
        halvings=5,
        checkpointing=(False, True),
    ),
)
"""The networks that come with this package."""


@cache
def networks() -> tuple[Network, ...]:
    """Return all registered networks: those of this package, then those of other packages.

    A network of another package that cannot be used is left out with a warning that names its package and the reason.
    """
    found = list(BUILT_IN)
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        package = entry.dist.name if entry.dist is not None else entry.value
        try:
            network = entry.load()
            _check(network, found)
        except Exception as error:  # code of other packages may raise anything
            warnings.warn(
                f"the network {entry.name!r} of the package {package!r} is left out: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            found.append(network)
    return tuple(found)


def _check(network: Any, others: list[Network]) -> None:
    if not isinstance(network, Network):
        raise TypeError(f"the entry point leads to a {type(network).__name__}, not to a nnunet_glims.networks.Network")
    for other in others:
        same = {network.name.lower(), *network.trainers} & {other.name.lower(), *other.trainers}
        if same:
            raise ValueError(f"the name {sorted(same)[0]!r} belongs to {other.name} already")


def _in_order() -> Iterator[Network]:
    """Yield the networks of this package first, so that other packages are searched only if the network is not among them."""
    yield from BUILT_IN
    yield from networks()[len(BUILT_IN) :]


def network_named(name: str) -> Network:
    """Return the network of that name, in capital or small letters.

    Raises:
        UsageError: there is no such network; the message has the nearest known name.
    """
    for network in _in_order():
        if network.name.lower() == name.lower():
            return network
    raise UsageError(f"network {name!r} is unknown: {nearest(name, [network.name for network in networks()])}")


def network_of_trainer(trainer: str) -> Network | None:
    """Return the network that a trainer class of that name trains; None where the trainer is not registered here."""
    return next((network for network in _in_order() if trainer in network.trainers), None)


def network_of_class(path: str) -> Network | None:
    """Return the network whose class has that import path; None where the class is not registered here."""
    return next((network for network in _in_order() if network.path == path), None)


def trained_by(trainer: str) -> tuple[Network, Mapping[str, Any]]:
    """Return the network that a registered trainer trains, and the constructor arguments on which it insists.

    Raises:
        UsageError: no trainer of that name is registered.
    """
    network = network_of_trainer(trainer)
    if network is None:
        known = [name for other in networks() for name in other.trainers]
        raise UsageError(f"trainer {trainer!r} is not registered: {nearest(trainer, known)}")
    return network, network.trainers[trainer]


def _load(path: str, what: str) -> type:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{what}: {path} cannot be imported: {error}") from error
