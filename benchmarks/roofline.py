"""Compare each stage of GLIMS and LATUP-Net with the limits of this machine: a table and a roofline diagram.

    python -m benchmarks.roofline [--patch 96] [--repeats 3] [--json FILE] [--picture docs/images/roofline.png]

The limits are the FLOP/s of a large matrix product or of a 3³ convolution with many channels, whichever is faster, and
the memory bandwidth of a triad (a = b + s·c; two reads, one write). The FLOP of a stage are those of convolutions,
linear layers and attention by torch's FLOP counter, two for a multiply-accumulate. For its memory traffic each
operation is assumed to read its inputs and weights once, and to write its outputs once. Both are counted on the meta
device. The time is that of a forward pass in float32 with batch size 1, 4 channels and 3 classes; the median over
repeats is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cpu import CHANNELS, CLASSES, processor
from nnunet_glims.architectures import GLIMS, LATUPNet
from nnunet_glims.kernels.ops import meta_stands_for

SIDE = 3072
WIDTH = 192
FLOATS = 2**25
SHOWN = 0.01
"""Fraction of a network's time from which a stage is in the picture."""
NETWORKS: dict[str, Callable[[tuple[int, int, int]], nn.Module]] = {
    "GLIMS": lambda patch: GLIMS(CHANNELS, CLASSES, patch, deep_supervision=False),
    "LATUP-Net": lambda patch: LATUPNet(CHANNELS, CLASSES, patch),
}


def best_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def roof() -> tuple[float, float]:
    """Return GFLOP/s and GB/s of this machine."""
    a, b, c = (torch.rand(SIDE, SIDE) for _ in range(3))
    product = 2 * SIDE**3 / best_seconds(lambda: torch.mm(a, b, out=c)) / 1e9
    x, weight = torch.rand(1, WIDTH, *[WIDTH // 4] * 3), torch.rand(WIDTH, WIDTH, 3, 3, 3)
    with torch.no_grad():
        seconds = best_seconds(lambda: torch.conv3d(x, weight, padding=1))
    gflops = max(product, 2 * 27 * WIDTH**2 * x[0, 0].numel() / seconds / 1e9)
    a, b, c = (torch.rand(FLOATS) for _ in range(3))
    return gflops, 3 * 4 * FLOATS / best_seconds(lambda: torch.add(b, c, alpha=0.5, out=a)) / 1e9


def stage_of(name: str) -> str | None:
    """Return the stage that a module belongs to; None for modules that are not timed themselves."""
    parts = name.split(".")
    if parts[0] not in ("encoder", "decoder") or len(parts) < 2:
        return None
    stage = f"{parts[0][:3]} {parts[1].replace('_', ' ')}"
    if parts[1] == "stages":
        return f"{parts[0][:3]} stage {int(parts[2]) + 1}" if len(parts) == 3 else None
    if parts[1].startswith("swin"):
        return stage if len(parts) == 4 and parts[2] == "blocks" else None
    if parts[1] in ("gates", "seg_layers"):
        return stage if len(parts) == 3 else None
    return stage if len(parts) == 2 else None


@contextmanager
def at_stages(network: nn.Module, begin: Callable[[str], None], end: Callable[[str], None]) -> Iterator[None]:
    """Within this context, call functions before and after each part of a stage is computed."""
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if (stage := stage_of(name)) is not None:
                before = module.register_forward_pre_hook(lambda *_, stage=stage: begin(stage))
                after = module.register_forward_hook(lambda *_, stage=stage: end(stage))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
        yield


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write in each stage; views are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = ""
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        read, written = ([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in ((arguments, options), result))
        blocks = {tensor.untyped_storage()._cdata for tensor in read}
        if any(tensor.untyped_storage()._cdata not in blocks for tensor in written):
            self.bytes[self.stage] += sum(tensor.nbytes for tensor in (*read, *written))
        return result


def count(build: Callable[[], nn.Module], x: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Return GFLOP and GB of each stage."""
    network, x = build().to("meta").eval(), x.to("meta")
    traffic = Traffic()
    with (
        torch.no_grad(),
        meta_stands_for("cpu"),
        at_stages(network, lambda stage: setattr(traffic, "stage", stage), lambda _: setattr(traffic, "stage", "")),
        traffic,
    ):
        network(x)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(x)
    gflop: dict[str, float] = defaultdict(float)
    for name, operations in counter.get_flop_counts().items():
        if (stage := stage_of(name.partition(".")[2])) is not None:
            gflop[stage] += sum(operations.values()) / 1e9
    return gflop, {stage: moved / 1e9 for stage, moved in traffic.bytes.items() if stage}


def measure(build: Callable[[], nn.Module], x: Tensor, repeats: int) -> dict[str, float]:
    """Seconds of each stage."""
    network = build().eval()
    started: dict[str, float] = {}
    passes: list[dict[str, float]] = []

    def begin(stage: str) -> None:
        started[stage] = time.perf_counter()

    def end(stage: str) -> None:
        passes[-1][stage] += time.perf_counter() - started[stage]

    with torch.no_grad(), at_stages(network, begin, end):
        for _ in range(repeats + 1):
            passes.append(defaultdict(float))
            network(x)
    return {stage: statistics.median(taken[stage] for taken in passes[1:]) for stage in passes[0]}


def draw(rows: list[dict], gflops: float, bandwidth: float, machine: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(15, 7.5), sharex=True, sharey=True, layout="constrained")
    shown = [row for row in rows if row["part"] >= SHOWN and row["gflop"]]
    low, high = (of(row["gflop"] / row["gb"] for row in shown) for of in (min, max))
    low, high, ridge = low / 2, 2 * high, gflops / bandwidth
    for axis, name in zip(axes, names, strict=True):
        axis.plot([low, ridge, high], [low * bandwidth, gflops, gflops], color="black")
        axis.text(ridge, gflops * 1.05, f"{gflops:.0f} GFLOP/s", va="bottom")
        middle = (low * ridge) ** 0.5
        axis.text(middle, middle * bandwidth, f"{bandwidth:.0f} GB/s  ", ha="right", va="bottom")
        of_network = sorted((row for row in shown if row["network"] == name), key=lambda row: row["gflop"] / row["gb"])
        for number, row in enumerate(of_network, 1):
            x, y = row["gflop"] / row["gb"], row["gflop"] / row["seconds"]
            label = f"{number}  {row['stage']}: {row['part']:.0%} of the time, {row['of_roof']:.0%} of the roof"
            axis.scatter([x], [y], s=100 + 1500 * row["part"], alpha=0.5, label=label)
            axis.text(x, y, str(number), ha="center", va="center", fontsize=8)
        axis.set(xscale="log", yscale="log", title=name, xlabel="arithmetic intensity [FLOP/byte]", xlim=(low, high))
        axis.grid(True, which="both", lw=0.3)
        legend = axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=8, frameon=False)
        for handle in legend.legend_handles:
            handle.set_sizes([30])
    axes[0].set_ylabel("GFLOP/s")
    figure.suptitle(f"Stages under the roof, area: part of the forward pass ({machine})")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all numbers there as well")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/roofline.png"))
    arguments = parser.parse_args()
    gflops, bandwidth = roof()
    print(
        f"{processor()}: {gflops:.0f} GFLOP/s, {bandwidth:.1f} GB/s; {arguments.patch}³, median of {arguments.repeats}\n"
    )
    patch = (arguments.patch,) * 3
    x = torch.randn(1, CHANNELS, *patch)
    rows = []
    print("| network | stage | GFLOP | GB | FLOP/byte | seconds | part | GFLOP/s | GB/s | of the roof |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, build in NETWORKS.items():
        gflop, gb = count(lambda build=build: build(patch), x)
        seconds = measure(lambda build=build: build(patch), x, arguments.repeats)
        for stage, taken in seconds.items():
            attainable = max(gflop[stage] / gflops, gb[stage] / bandwidth)
            row = {
                "network": name,
                "stage": stage,
                "gflop": gflop[stage],
                "gb": gb[stage],
                "seconds": taken,
                "part": taken / sum(seconds.values()),
                "of_roof": attainable / taken,
            }
            rows.append(row)
            print(
                f"| {name} | {stage} | {row['gflop']:.2f} | {row['gb']:.2f} | {row['gflop'] / row['gb']:.1f} | {taken:.3f} "
                f"| {row['part']:.0%} | {row['gflop'] / taken:.0f} | {row['gb'] / taken:.1f} | {row['of_roof']:.0%} |"
            )
    draw(rows, gflops, bandwidth, processor(), arguments.picture)
    if arguments.json:
        result = {
            "machine": processor(),
            "patch": arguments.patch,
            "gflops": gflops,
            "gb_per_s": bandwidth,
            "stages": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
