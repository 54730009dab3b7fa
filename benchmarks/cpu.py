"""Measure the time of a forward pass and of a training step on CPUs: 96³, 4 channels, 3 classes, batch size 1, float32.

    python -m benchmarks.cpu [--patch 96] [--repeats 3] [--forward] [--json FILE]
    python -m benchmarks.cpu --only "LATUP-Net" [--patch 96] [--forward] [--precision bf16]   # one network, in this process

Every network runs in a process of its own, as its users run it. nnU-Net's network has the system's memory settings, and
the networks of this package have those of the package (see docs/performance.md). "Memory kept" is nnU-Net's network with
the settings of the package, and "as MONAI ships it" is Swin UNETR with those of the system. "Straightforward" are the
networks of this package computed by PyTorch's own operations, without recomputation and with the settings of the
system. A repeat measures all networks one after the other, so that other load on the machine affects all of them; the
median over repeats is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from rich.box import HEAVY_HEAD, Box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_glims.architectures import GLIMS, LATUPNet, SwinUNETR
from nnunet_glims.architectures.latupnet import UpsampleConvolution
from nnunet_glims.kernels.cpu import keep_freed_memory

CHANNELS, CLASSES = 4, 3
REFERENCE = "nnU-Net PlainConvUNet"
SYSTEM = {"NNUNET_GLIMS_KERNELS": "eager", "NNUNET_GLIMS_KEEP_MEMORY": "0"}
OF_CPU_MEMORY = KEPT, SHIPPED = "memory kept", "as MONAI ships it"
"""Endings of the names of networks that differ from another one in the memory settings on CPUs only."""
FEWEST_SECONDS = 2.0
LONG = 10.0
"""Seconds from which the first run counts as well, because warming up does not matter then."""


def plain_conv_unet() -> nn.Module:
    """Return nnU-Net's default network as nnU-Net plans it for isotropic patches of 96³ or 128³."""
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


class _StraightforwardUpsampling(UpsampleConvolution):
    def forward(self, x: Tensor) -> Tensor:
        fine = F.interpolate(x, scale_factor=[float(step) for step in self.scale], mode="nearest")
        return F.conv3d(F.pad(fine, (0, 1) * 3), self.weight, self.bias)


def straightforward_latupnet(size: tuple[int, int, int]) -> nn.Module:
    network = LATUPNet(CHANNELS, CLASSES, size)
    for module in network.modules():
        if isinstance(module, UpsampleConvolution):
            module.__class__ = _StraightforwardUpsampling
    return network


def networks(patch: int) -> dict[str, tuple[Callable[[], nn.Module], dict[str, str]]]:
    """Return for each name a function that builds the network, and the environment variables of its process."""
    size = (patch, patch, patch)
    return {
        "GLIMS": (lambda: GLIMS(CHANNELS, CLASSES, size), {}),
        "GLIMS, straightforward": (lambda: GLIMS(CHANNELS, CLASSES, size, checkpointing="none"), SYSTEM),
        "LATUP-Net": (lambda: LATUPNet(CHANNELS, CLASSES, size), {}),
        "LATUP-Net, straightforward": (lambda: straightforward_latupnet(size), SYSTEM),
        REFERENCE: (plain_conv_unet, {}),
        f"{REFERENCE}, {KEPT}": (plain_conv_unet, {}),
        "Swin UNETR": (lambda: SwinUNETR(CHANNELS, CLASSES, size), {}),
        f"Swin UNETR, {SHIPPED}": (lambda: SwinUNETR(CHANNELS, CLASSES, size), SYSTEM),
    }


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


def seconds_of(run: Callable[[nn.Module, Tensor], None], network: nn.Module, x: Tensor) -> float:
    started = time.perf_counter()
    run(network, x)
    return time.perf_counter() - started


def measure(name: str, patch: int, steps: bool = True, precision: str | None = None) -> dict[str, float]:
    """Return the seconds of "forward" and "training step".

    Each is the fastest of up to five runs after a first one, which counts only if it takes `LONG` or more.

    Args:
        name: a key of `networks`.
        patch: voxels along each axis.
        steps: whether training steps are measured as well.
        precision: value of `network.precision`, for networks of this package.
    """
    if name.endswith(KEPT):
        keep_freed_memory(patch**3)
    network, x = networks(patch)[name][0](), torch.randn(1, CHANNELS, patch, patch, patch)
    seconds = {}
    if precision is not None:
        network.precision = precision
    for what, run in (("forward", forward), ("training step", training_step))[: 2 if steps else 1]:
        first = seconds_of(run, network, x)
        taken = [first] if first > LONG else []
        while not taken or (sum(taken) < FEWEST_SECONDS and len(taken) < 5):
            taken.append(seconds_of(run, network, x))
        seconds[what] = min(taken)
    return seconds


def measure_all(patch: int, repeats: int, steps: bool) -> dict[str, dict[str, list[float]]]:
    """Return for each network, and for "forward" and "training step", the seconds of each repeat."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in networks(patch)}
    for _ in range(repeats):
        for name, (_, variables) in networks(patch).items():
            command = [sys.executable, "-m", "benchmarks.cpu", "--patch", str(patch), "--only", name]
            command += [] if steps else ["--forward"]
            run = subprocess.run(
                command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True
            )
            for what, value in json.loads(run.stdout).items():
                seconds[name].setdefault(what, []).append(value)
    return seconds


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def ratio_table(title: str, medians: dict[str, dict[str, float]], shape: Box = HEAVY_HEAD) -> Table:
    """Return a table with a row for each network: quantities and their ratio to those of nnU-Net's network."""
    table = Table("network", title=title, box=shape)
    for what in medians[REFERENCE]:
        table.add_column(escape(what), justify="right")
        table.add_column("/ PlainConvUNet", justify="right")
    for name, found in medians.items():
        pairs = (
            (f"{found[what]:.3g}", f"{found[what] / base:.2f}") if what in found else ("—", "—")
            for what, base in medians[REFERENCE].items()
        )
        table.add_row(name, *(cell for pair in pairs for cell in pair))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all seconds there as well")
    parser.add_argument(
        "--only", choices=list(networks(32)), metavar="NAME", help="measure only this network, in this process"
    )
    parser.add_argument("--forward", action="store_true", help="no training steps")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="precision, with --only and a network of this package"
    )
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.patch, not arguments.forward, arguments.precision)))
        return
    seconds = measure_all(arguments.patch, arguments.repeats, not arguments.forward)
    medians = {
        name: {f"{what} [s]": statistics.median(taken) for what, taken in of.items()} for name, of in seconds.items()
    }
    Console().print(ratio_table(f"{arguments.patch}³ on {processor()}, median of {arguments.repeats}", medians))
    if arguments.json:
        result = {"machine": processor(), "patch": arguments.patch, "seconds": seconds}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
