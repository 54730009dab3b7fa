"""Estimate what a comparison will need: training steps, hours and disk space."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from nnunet_glims.experiments.comparison import Entry
from nnunet_glims.experiments.executors.local import free_bytes
from nnunet_glims.experiments.layout import Layout
from nnunet_glims.files import working_folder
from nnunet_glims.nnunet.dataset_json import read_dataset_json
from nnunet_glims.nnunet.plans.configuration import BASE_PLANS, read_plans
from nnunet_glims.nnunet.plans.content import resolved
from nnunet_glims.nnunet.plans.override import apply_override, load_override

NNUNET_STEPS = (1000, 250, 50)
"""Epochs, and training and validation steps in an epoch, of nnU-Net's own trainer."""
NNUNET_PARAMETERS = 31e6
"""Approximate number of parameters of the 3D network that nnU-Net plans."""
CHECKPOINTS = 3
"""Number of checkpoints: the latest or final one, the best one, and the previous one."""
BYTES_A_PARAMETER = 12
"""Bytes of a checkpoint for each parameter: weight and two moments in float32."""
PREPROCESSED = 2.5
"""Assumed ratio of the size of preprocessed to compressed raw images. It was 1.8 for BraTS and CHAOS, 3.1 for Hippocampus."""
TIMED_STEPS = 4


def estimate(layout: Layout, timing: bool) -> Iterator[str]:
    """Yield lines of text with the training steps and disk space of each entry.

    Args:
        layout: the comparison.
        timing: measure the time of training steps now, to estimate hours, for entries whose plans exist.
    """
    total_hours, total_bytes, unplanned = 0.0, 0.0, set()
    trainings = len(layout.comparison.folds) * len(layout.comparison.seeds)
    for number in layout.comparison.datasets:
        name = layout.dataset_names[number]
        for entry in layout.comparison.entries:
            epochs, steps, validation = _length(layout, number, entry)
            many = "trainings" if trainings > 1 else "training"
            line = f"{name} {entry.name}: {trainings} {many} of {epochs * steps:,} steps"
            parameters = entry.network.parameters_m * 1e6 if entry.network is not None else NNUNET_PARAMETERS
            built = _built(layout, number, entry) if timing else None
            if built is not None:
                parameters = sum(parameter.numel() for parameter in built[0].parameters())
                seconds = _timed(layout, *built)
                # A validation step is a forward pass, which takes about a third of a training step.
                hours = seconds * epochs * (steps + validation / 3) / 3600
                total_hours += trainings * hours
                line += f", {seconds:.2f} s a step here, {hours:.1f} h each"
            elif timing:
                unplanned.add(number)
            nbytes = trainings * CHECKPOINTS * BYTES_A_PARAMETER * parameters
            total_bytes += nbytes
            yield f"{line}, about {_size(nbytes)} of checkpoints"
        images = [path.stat().st_size for path in (layout.raw / name / "imagesTr").glob("*")]
        if images and not (layout.preprocessed / name / f"{BASE_PLANS}.json").exists():
            nbytes = PREPROCESSED * sum(images)
            total_bytes += nbytes
            yield f"{name}: about {_size(nbytes)} of preprocessed images"
    hours_told = f"{total_hours:.1f} hours of training and " if total_hours else ""
    yield f"together {hours_told}{_size(total_bytes)}"
    if not timing:
        yield "hours: with --timing"
    for number in sorted(unplanned):
        configurations = " ".join(dict.fromkeys(entry.configuration for entry in layout.comparison.entries))
        yield f"hours: when the data set is planned: nnUNetv2_plan_and_preprocess -d {number} -c {configurations}"
    for folder in (layout.preprocessed, layout.results):
        yield f"free: {_size(free_bytes(folder))} in {folder}"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def _length(layout: Layout, number: int, entry: Entry) -> tuple[int, int, int]:
    if entry.network is None:
        return NNUNET_STEPS
    recipe = entry.network.recipe
    base = layout.dataset(number) / f"{entry.plans}.json"
    if base.exists():
        settings = resolved(read_plans(base)["configurations"], entry.configuration).get("training", {})
        recipe = recipe.changed(settings, f"{base}: training")
    if entry.override is not None:
        recipe = recipe.changed(load_override(entry.override)[1].training, entry.override)
    recipe = recipe.changed(entry.training, entry.name)
    return recipe.epochs, recipe.iterations_per_epoch, recipe.validation_iterations


def _built(layout: Layout, number: int, entry: Entry) -> tuple[Any, int, list[int], int] | None:
    """Return the entry's network, its input channels, patch and batch; None where its plans do not exist yet."""
    folder = layout.dataset(number)
    path = folder / f"{entry.plans}.json"
    if not path.exists():
        return None
    from nnunet_glims.nnunet.models import network_of

    with working_folder(Path(gettempdir(), f"nnunet_glims_{layout.path.stem}")) as applied:
        if entry.override is not None:
            shutil.copy(path, applied)
            path = apply_override(applied, entry.override, entry.configuration, entry.plans).path
        plans = read_plans(path)
    return network_of(plans, dict(read_dataset_json(folder / "dataset.json")), entry.trainer, entry.configuration)


def _timed(layout: Layout, network: Any, channels: int, patch: list[int], batch: int) -> float:
    """Return the seconds that a training step on random numbers takes."""
    import torch

    device = layout.comparison.device
    network = network.to(device).train()
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
    return statistics.median(seconds[1:])
