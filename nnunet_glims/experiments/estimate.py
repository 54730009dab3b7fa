"""What a comparison will need: steps, hours, disk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from nnunet_glims.experiments.comparison import Entry
from nnunet_glims.experiments.jobs import Plan
from nnunet_glims.experiments.local import free_bytes
from nnunet_glims.files import read_json
from nnunet_glims.plans import BASE_PLANS, load_override

NNUNET_STEPS = (1000, 250, 50)
"""Epochs, training and validation steps an epoch of nnU-Net's own trainer."""
CHECKPOINTS = 3
"""latest or final, best, and the previous one while a new one is written."""
TIMED_STEPS = 4


def estimate(plan: Plan, timing: bool) -> Iterator[str]:
    """Lines to show: steps of each entry, and where the data sets are prepared hours (timed now) and disk."""
    total_hours, total_bytes, untimed = 0.0, 0.0, False
    trainings = len(plan.comparison.folds) * len(plan.comparison.seeds)
    for number in plan.comparison.datasets:
        for entry in plan.comparison.entries:
            epochs, steps, validation = _length(entry)
            line = f"{plan.dataset_names[number]} {entry.name}: {trainings} trainings of {epochs * steps:,} steps"
            built = _built(plan, number, entry) if timing else None
            if built is None:
                untimed = True
            else:
                seconds, nbytes = _timed(plan, *built)
                # a validation step is a forward pass: about a third
                hours = seconds * epochs * (steps + validation / 3) / 3600
                total_hours += trainings * hours
                total_bytes += trainings * nbytes
                line += f", {seconds:.2f} s a step here, {hours:.1f} h each, {nbytes / 1e9:.1f} GB of checkpoints"
            yield line
    if timing and total_hours:
        yield f"together {total_hours:.1f} hours of training and {total_bytes / 1e9:.1f} GB of checkpoints"
    if untimed:
        how = "the data sets are prepared first (compare run)" if timing else "with --timing"
        yield f"hours and disk: {how}"
    for folder in (plan.preprocessed, plan.results):
        yield f"free: {free_bytes(folder) / 1e9:.0f} GB in {folder}"


def _length(entry: Entry) -> tuple[int, int, int]:
    if entry.network is None:
        return NNUNET_STEPS
    recipe = entry.network.recipe
    if entry.override is not None:
        recipe = recipe.changed(load_override(entry.override)[1].training, entry.override)
    recipe = recipe.changed(entry.training, entry.name)
    return recipe.epochs, recipe.iterations_per_epoch, recipe.validation_iterations


def _built(plan: Plan, number: int, entry: Entry) -> tuple[Any, int, list[int], int] | None:
    """The entry's network, its input channels, patch and batch; None where its plans are not there yet."""
    folder = plan.preprocessed / plan.dataset_names[number]
    own = folder / f"{plan.plans_name(entry, plan.comparison.seeds[0])}.json"
    path = own if own.exists() else folder / f"{BASE_PLANS}.json"
    if not path.exists() or (path != own and entry.override is not None):
        return None
    from nnunet_glims.models import network_of

    return network_of(read_json(path), read_json(folder / "dataset.json"), entry.trainer, entry.configuration)


def _timed(plan: Plan, network: Any, channels: int, patch: list[int], batch: int) -> tuple[float, float]:
    """Seconds of a training step on random numbers, and bytes of a training's checkpoints."""
    import torch

    device = plan.comparison.device
    network = network.to(device).train()
    weights = sum(parameter.numel() for parameter in network.parameters())
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-9)
    x = torch.randn(batch, channels, *patch, device=device)
    seconds = []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        with torch.autocast(device, enabled=device == "cuda"):
            out = network(x)
            out = out[0] if isinstance(out, list | tuple) else out
            loss = out.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    # weights and two moments in float32
    return statistics.median(seconds[1:]), CHECKPOINTS * 3 * 4 * weights
