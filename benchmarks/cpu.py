"""Seconds of a forward pass and of a training step on CPUs, at 96³, 4 channels, 3 classes, batch 1, float32, and ratios.

    python -m benchmarks.cpu [--patch 96] [--repeats 3] [--json FILE]

All networks run in one process, in turns, so that a slower minute of the machine hits all alike; the median of the repeats
counts. "straightforward" is GLIMS by PyTorch's own operations, nothing recomputed. All share the process's memory settings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nnunet_glims.architectures import GLIMS, LATUPNet, SwinUNETR

CHANNELS, CLASSES = 4, 3


def plain_conv_unet() -> nn.Module:
    """nnU-Net's default network as it plans it for isotropic patches of 96³ or 128³."""
    return PlainConvUNet(
        CHANNELS,
        6,
        (32, 64, 128, 256, 320, 320),
        nn.Conv3d,
        3,
        (1, 2, 2, 2, 2, 2),
        2,
        CLASSES,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def networks(patch: int) -> dict[str, Callable[[], nn.Module]]:
    size = (patch,) * 3
    return {
        "GLIMS": lambda: GLIMS(CHANNELS, CLASSES, size),
        "GLIMS, straightforward": lambda: GLIMS(CHANNELS, CLASSES, size, checkpointing="none"),
        "LATUP-Net": lambda: LATUPNet(CHANNELS, CLASSES, size),
        "nnU-Net PlainConvUNet": plain_conv_unet,
        "Swin UNETR": lambda: SwinUNETR(CHANNELS, CLASSES, size),
    }


@contextlib.contextmanager
def kernels(setting: str):
    os.environ["NNUNET_GLIMS_KERNELS"] = setting
    yield
    del os.environ["NNUNET_GLIMS_KERNELS"]


def forward(network: nn.Module, x: Tensor) -> None:
    network.eval()
    network.decoder.deep_supervision = False
    with torch.no_grad():
        network(x)


def training_step(network: nn.Module, x: Tensor) -> None:
    network.train()
    network.decoder.deep_supervision = True
    network.zero_grad()
    outputs = network(x)
    sum(out.square().mean() for out in (outputs if isinstance(outputs, list) else [outputs])).backward()


def measure(patch: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Name -> "forward" and "training step" -> seconds of each repeat, after one that is not counted."""
    x = torch.randn(1, CHANNELS, patch, patch, patch)
    seconds = {name: {"forward": [], "training step": []} for name in networks(patch)}
    built = {name: build() for name, build in networks(patch).items()}
    for what, run in (("forward", forward), ("training step", training_step)):
        for repeat in range(repeats + 1):
            for name, network in built.items():
                with kernels("eager" if "straightforward" in name else "auto"):
                    started = time.perf_counter()
                    run(network, x)
                    took = time.perf_counter() - started
                if repeat:
                    seconds[name][what].append(took)
                network.zero_grad(set_to_none=True)
    return seconds


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all seconds there as well")
    arguments = parser.parse_args()
    seconds = measure(arguments.patch, arguments.repeats)
    medians = {name: {what: statistics.median(taken) for what, taken in of.items()} for name, of in seconds.items()}
    table = Table(title=f"{arguments.patch}³ on {processor()}, median of {arguments.repeats}")
    reference = medians["nnU-Net PlainConvUNet"]
    table.add_column("network")
    for what in reference:
        table.add_column(f"{what} [s]", justify="right")
        table.add_column("/ PlainConvUNet", justify="right")
    for name, taken in medians.items():
        cells = [cell for what, value in taken.items() for cell in (f"{value:.2f}", f"{value / reference[what]:.2f}")]
        table.add_row(name, *cells)
    Console().print(table)
    if arguments.json:
        result = {"machine": processor(), "patch": arguments.patch, "seconds": seconds}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
