"""Compare the estimated memory of training steps with what they take, on this machine's GPU or CPU.

    python -m benchmarks.memory [--large] [--json FILE]

Every step runs in a process of its own, after a small one of the same network. On GPUs "measured" is what torch
reserved at most plus what CUDA took of the device outside of torch, and "tensors" what torch allocated at most; on CPUs
"measured" is by how much the process grew (freed memory given back to the system), and "tensors" is added up from the
profiler's list of allocations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.cpu import CHANNELS, CLASSES, processor
from nnunet_glims.kernels.cpu import keep_freed_memory
from nnunet_glims.networks import network_named
from nnunet_glims.nnunet.plans.memory import GIB, StepMemory, nnunet_loss, training_step
from nnunet_glims.trainers.robust_trainer import peak_memory

GLIMS = [("GLIMS", {"checkpointing": setting}) for setting in ("none", "aggregators", "stages")]
LATUPNET, SWIN_UNETR = ("LATUPNet", {}), ("SwinUNETR", {})
ON_CPU = [
    *((*network, (48, 48, 48), 2) for network in (*GLIMS, LATUPNET)),
    (*GLIMS[1], (64, 64, 64), 1),
    (*GLIMS[1], (16, 96, 96), 2),
    (*LATUPNET, (64, 64, 64), 1),
    (*SWIN_UNETR, (64, 64, 64), 1),
]
LARGE = [
    *((*network, (64, 64, 64), 2) for network in (*GLIMS, LATUPNET)),
    (*GLIMS[1], (32, 128, 128), 1),
    (*GLIMS[1], (96, 96, 96), 1),
    (*LATUPNET, (96, 96, 96), 1),
]
ON_GPU = [
    (*network, (side,) * 3, batch)
    for network in (*GLIMS, LATUPNET, SWIN_UNETR)
    for side in (96, 128)
    for batch in (2, 4)
]


def build(name: str, arguments: dict, patch: tuple[int, ...]) -> nn.Module:
    network = network_named(name)
    deep_supervision = network.recipe.deep_supervision
    return network.load_class()(CHANNELS, CLASSES, tuple(patch), deep_supervision=deep_supervision, **arguments)


def estimate(name: str, arguments: dict, patch: tuple[int, ...], batch: int, device: str) -> StepMemory:
    return training_step(build(name, arguments, patch), patch, batch, network_named(name).recipe, device)


def measure(case: tuple, device: str) -> dict[str, float]:
    """Return the GiB that a training step of nnU-Net takes; to be called in a process of its own."""
    name, arguments, patch, batch = case
    recipe = network_named(name).recipe
    keep_freed_memory(0)
    torch.nn.functional.conv3d(*(torch.ones(1, 1, 8, 8, 8, device=device) for _ in range(2)))  # loads libraries
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        outside = total - free - torch.cuda.memory_reserved()
    else:
        before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    network = build(name, arguments, patch).to(device)
    network.precision = recipe.precision
    optimizer = getattr(torch.optim, recipe.optimizer)(network.parameters())

    def step(size: tuple[int, ...], number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = network(torch.randn(number, CHANNELS, *size, device=device))
        nnunet_loss(outputs if isinstance(outputs, list) else [outputs], regions=False).backward()
        optimizer.step()

    step((32, 32, 32), 1)  # makes the optimiser's moments
    if device == "cuda":
        step(patch, batch)
        taken = torch.cuda.max_memory_reserved() + outside
        return {"measured": taken / GIB, "tensors": torch.cuda.max_memory_allocated() / GIB}
    optimizer.zero_grad(set_to_none=True)
    now = sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])
    now += sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(patch, batch)
    grown = peak_memory(torch.device(device)) - before
    peak = now
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return {"measured": grown / GIB, "tensors": peak / GIB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all numbers there as well")
    parser.add_argument("--large", action="store_true", help="on CPUs also steps of up to 8 GB")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.case is not None:
        print(json.dumps(measure(json.loads(arguments.case), device)))
        return
    machine = torch.cuda.get_device_name() if device == "cuda" else processor()
    table = Table(
        "network", "patch", "batch", "estimated [GiB]", "measured", "ratio", "of tensors", "ratio", title=machine
    )
    rows = []
    cases = ON_GPU if device == "cuda" else ON_CPU + LARGE * arguments.large
    for case in cases:
        name, options, patch, batch = case
        command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(case)]
        environment = {**os.environ, "NNUNET_GLIMS_KEEP_MEMORY": "0"}
        result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        found = json.loads(result.stdout.splitlines()[-1])
        estimated = estimate(*case, device)
        total, tensors = estimated.total / GIB, (estimated.total - estimated.overhead) / GIB
        rows.append({"network": name, **options, "patch": patch, "batch": batch, "estimated": total, **found})
        title = " ".join([name, *map(str, options.values())])
        table.add_row(
            title,
            "×".join(map(str, patch)),
            str(batch),
            f"{total:.2f}",
            f"{found['measured']:.2f}",
            f"{total / found['measured']:.2f}",
            f"{found['tensors']:.2f}",
            f"{tensors / found['tensors']:.2f}",
        )
        print(f"{title} {patch} {batch}", file=sys.stderr, flush=True)
    Console(width=120).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "steps": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
