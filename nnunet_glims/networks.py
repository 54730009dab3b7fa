"""The networks, each listed once: the command line, the docs' tables and the tests read this list."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_glims.errors import UsageError
from nnunet_glims.training import recipes
from nnunet_glims.training.recipes import Recipe
from nnunet_glims.validation import nearest


@dataclass(frozen=True)
class Network:
    """One network and what is published about it.

    Attributes:
        name: class in `nnunet_glims.architectures`.
        trainer: what users give to `-tr`.
        paper: where it is described.
        parameters_m, gflops: millions of parameters and GFLOPs as published.
        published_for: input the published figures are for, as (channels, classes, patch size).
        recipe: how its trainer trains it where plans say nothing else.
        stages: resolutions whose strides follow the data's spacing; None where they are fixed.
        halvings: how often a patch should be divisible by two.
        checkpointing: values of the argument of that name, the fastest first; empty where there is none.
        results: published segmentation results, each with what they were measured on.
        licence: of the authors' code. Ours is written from the paper and measurements, under Apache-2.0.
    """

    name: str
    trainer: str
    paper: str
    parameters_m: float
    gflops: float
    published_for: tuple[int, int, tuple[int, int, int]]
    recipe: Recipe
    stages: int | None
    halvings: int
    licence: str
    checkpointing: tuple[str | bool, ...] = ()
    results: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Import path, as it stands in plans files."""
        return f"nnunet_glims.architectures.{self.name}"


NETWORKS = (
    Network(
        name="GLIMS",
        trainer="nnUNetTrainerGLIMS",
        paper="arXiv 2404.17854",
        parameters_m=47.16,
        gflops=72.30,
        published_for=(4, 3, (96, 96, 96)),
        recipe=recipes.GLIMS,
        stages=6,
        halvings=4,
        checkpointing=("none", "aggregators", "stages"),
        licence="no code of the authors is used",
        results=("BraTS 2023 validation: Dice WT 0.9219, TC 0.8775, ET 0.8318 (arXiv 2403.09942)",),
    ),
    Network(
        name="LATUPNet",
        trainer="nnUNetTrainerLATUPNet",
        paper="arXiv 2404.05911",
        parameters_m=3.07,
        gflops=15.79,
        published_for=(3, 4, (128, 128, 128)),
        recipe=recipes.LATUPNET,
        stages=4,
        halvings=3,
        licence="the authors' code is AGPL; none of it is used",
        results=(
            "BraTS 2020: Dice WT 0.8841, TC 0.8382, ET 0.7367",
            "BraTS 2021: Dice WT 0.9029, TC 0.8954, ET 0.8392",
        ),
    ),
    Network(
        name="SwinUNETR",
        trainer="nnUNetTrainerSwinUNETR",
        paper="arXiv 2201.01266",
        parameters_m=61.98,
        gflops=394.84,
        published_for=(4, 3, (96, 96, 96)),
        recipe=recipes.SWIN_UNETR,
        stages=None,
        halvings=5,
        checkpointing=(False, True),
        licence="MONAI's implementation (Apache-2.0), an optional dependency",
    ),
)


def network_named(name: str) -> Network:
    """The network of that name; raises `UsageError` with the nearest right one."""
    for network in NETWORKS:
        if network.name == name:
            return network
    raise UsageError(f"network {name!r} is unknown: {nearest(name, [network.name for network in NETWORKS])}")
