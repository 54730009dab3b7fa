"""Measure time and memory of training steps, forward passes and whole cases on a GPU; prints a table in Markdown.

    python -m benchmarks.gpu [--patch 128] [--batch 2] [--repeats 5] [--case 240 240 155] [--json FILE]

A training step is that of nnU-Net: float16 autocast, scaled and clipped gradients, SGD. A forward pass is in evaluation
mode with float16 autocast. A whole case is predicted by nnU-Net's sliding window with mirroring along all axes.
Networks run one after the other, so that each can use all of the GPU's memory. The first runs, in which kernels are
compiled and chosen, are not counted. "GLIMS, straightforward" is GLIMS computed by PyTorch's own operations, without
recomputation. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from rich.box import MARKDOWN
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from benchmarks.cpu import CHANNELS, CLASSES, OF_CPU_MEMORY, REFERENCE, networks, processor, ratio_table
from nnunet_glims.errors import UsageError

TRAINING, FORWARD, CASE = "training step [s]", "forward [s]", "whole case [s]"
TRAINING_MEMORY, FORWARD_MEMORY = "training memory [GiB]", "forward memory [GiB]"


def contestants(patch: int) -> dict[str, tuple[Callable[[], nn.Module], str]]:
    """Return for each network a function that builds it, and the setting of NNUNET_GLIMS_KERNELS.

    The networks are those of the CPU table. nnU-Net's network is compiled, as nnU-Net does on GPUs; GLIMS is measured
    with and without compilation.
    """
    found = {
        name: (build, variables.get("NNUNET_GLIMS_KERNELS", "triton"))
        for name, (build, variables) in networks(patch).items()
        if not name.endswith(OF_CPU_MEMORY)
    }
    for name, build in ((REFERENCE, found[REFERENCE][0]), ("GLIMS, compiled", found["GLIMS"][0])):
        found[name] = (lambda build=build: torch.compile(build())), "triton"
    return found


def trainer(network: nn.Module, size: tuple[int, ...], device: torch.device) -> Callable[[], None]:
    """Return a function that computes one training step."""
    network.train()
    network.decoder.deep_supervision = True
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    batch, _, *patch = size
    x, labels = torch.randn(size, device=device), torch.randint(CLASSES, (batch, 1, *patch), device=device).float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            outputs = network(x)
            loss = torch.zeros((), device=device)
            for output in outputs if isinstance(outputs, list) else [outputs]:
                target = F.interpolate(labels, output.shape[2:])[:, 0].long()
                loss = loss + F.cross_entropy(output, target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()

    return step


def forward(network: nn.Module, size: tuple[int, ...], device: torch.device) -> Callable[[], None]:
    """Return a function that computes one forward pass."""
    network.eval()
    network.decoder.deep_supervision = False
    x = torch.randn(size, device=device)

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            network(x)

    return run


def sliding_window(
    network: nn.Module, patch: tuple[int, ...], case: tuple[int, ...], device: torch.device
) -> Callable[[], None]:
    """Return a function that predicts one case."""
    network.decoder.deep_supervision = False
    on_gpu = device.type == "cuda"
    predictor = nnUNetPredictor(perform_everything_on_device=on_gpu, device=device, allow_tqdm=False)
    plans = SimpleNamespace(get_label_manager=lambda _: SimpleNamespace(num_segmentation_heads=CLASSES))
    predictor.manual_initialization(network, plans, SimpleNamespace(patch_size=patch), None, {}, "", (0, 1, 2))
    image = torch.randn(CHANNELS, *case)
    return lambda: predictor.predict_sliding_window_return_logits(image)


def timed(run: Callable[[], None], repeats: int, device: torch.device) -> tuple[list[float], float]:
    """Return the seconds of each repeat, after two that are not counted, and the peak memory of tensors in GiB."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for repeat in range(repeats + 2):
        if repeat == 2 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    return seconds[2:], memory


def measure(
    build: Callable[[], nn.Module], options: argparse.Namespace, device: torch.device
) -> dict[str, list[float] | float]:
    """Return all quantities of one network, without those for which there was not enough memory."""
    found: dict[str, list[float] | float] = {}
    network = build().to(device)
    patch = (options.patch,) * 3
    size = (options.batch, CHANNELS, *patch)
    tasks = (
        (TRAINING, TRAINING_MEMORY, lambda: trainer(network, size, device), options.repeats),
        (FORWARD, FORWARD_MEMORY, lambda: forward(network, size, device), options.repeats),
        (CASE, None, lambda: sliding_window(network, patch, tuple(options.case), device), 1),
    )
    for what, memory, make, repeats in tasks:
        try:
            found[what], taken = timed(make(), repeats, device)
        except torch.cuda.OutOfMemoryError as error:
            print(f"{what}: {error}", file=sys.stderr)
            continue
        finally:
            network.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if memory and device.type == "cuda":
            found[memory] = taken
    return found


def describe(device: torch.device) -> str:
    if device.type != "cuda":
        return processor()
    name, version = torch.cuda.get_device_name(device), torch.version.cuda or torch.version.hip
    return f"{name}, torch {torch.__version__}, CUDA {version}"


def report(measured: dict[str, dict[str, list[float] | float]], title: str) -> None:
    """Print a table of medians in Markdown."""
    numbers = {
        name: {what: statistics.median(value) if isinstance(value, list) else value for what, value in of.items()}
        for name, of in measured.items()
    }
    console = Console(width=400)
    console.print(f"{title}\n", highlight=False, markup=False)
    console.print(ratio_table("", numbers, MARKDOWN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", type=int, nargs=3, default=(240, 240, 155), help="voxels of the whole case")
    parser.add_argument("--device", default="cuda", help="cuda or cpu; the CPU only shows that the script runs")
    parser.add_argument("--json", type=Path, help="write all seconds there as well")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "There is no CUDA device that torch can use: nothing was measured. python -m benchmarks.cpu measures CPUs."
        )
    torch.backends.cudnn.benchmark = True
    warnings.filterwarnings("error", "The Triton kernel")  # formulas must not be measured as kernels
    measured: dict[str, dict[str, list[float] | float]] = {}
    for name, (build, setting) in contestants(options.patch).items():
        print(f"{name} …", file=sys.stderr)
        torch.compiler.reset()
        if device.type == "cpu" and setting == "triton":
            setting = "auto"
        try:
            with mock.patch.dict(os.environ, NNUNET_GLIMS_KERNELS=setting):
                measured[name] = measure(build, options, device)
        except (UsageError, RuntimeWarning) as error:
            print(f"{name}: {error}", file=sys.stderr)
    if REFERENCE not in measured:
        sys.exit(f"{REFERENCE} could not be measured: there is nothing to compare with.")
    title = f"{options.patch}³, batch {options.batch}, on {describe(device)}, median of {options.repeats}"
    report(measured, title)
    if options.json:
        result = {"machine": describe(device), "patch": options.patch, "batch": options.batch, "measured": measured}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
