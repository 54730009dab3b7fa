"""Print what `nnunet-glims plans auto` chooses for three real and four invented data sets, on GPUs of 6 to 80 GB.

    python -m benchmarks.plans_auto [--network GLIMS] [--data brats ...] [--vram 6 8 12 24 80] [--eager]

Spacings and median shapes of the real data sets were determined by nnU-Net, from all cases of Hippocampus, six of BraTS
2018 and four of CHAOS.
"""

from __future__ import annotations

import argparse

from nnunet_glims.networks import network_named, networks
from nnunet_glims.nnunet.plans.memory import GIB
from nnunet_glims.nnunet.plans.sizing import DatasetProperties, size_for_gpu

DATA = {
    "hippocampus": DatasetProperties(1, 3, False, (1, 1, 1), (36, 50, 35), 260, (40, 56, 40)),
    "brats": DatasetProperties(4, 3, True, (1, 1, 1), (140.5, 173, 142), 6, (128, 128, 128)),
    "chaos": DatasetProperties(1, 5, False, (7.7, 1.25, 1.25), (35, 248.5, 256), 4, (32, 224, 256)),
    "tiny": DatasetProperties(1, 2, False, (1, 1, 1), (18, 20, 16), 100, (20, 20, 16)),
    "huge": DatasetProperties(1, 14, False, (1, 0.7, 0.7), (900, 700, 700), 200, (128, 128, 128)),
    "flat": DatasetProperties(1, 4, False, (10, 1.4, 1.4), (9, 256, 216), 150, (10, 256, 224)),
    "long": DatasetProperties(2, 2, False, (1, 1, 1), (1200, 60, 60), 40, (320, 64, 64)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="GLIMS", choices=[network.name for network in networks()])
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--vram", nargs="+", type=float, default=[6, 8, 12, 24, 80])
    parser.add_argument("--eager", action="store_true", help="a GPU without the package's kernels")
    arguments = parser.parse_args()
    print("| data set | GB | patch | batch | checkpointing | estimated [GB] | use | limited by |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.data:
        for vram in arguments.vram:
            fitted = size_for_gpu(DATA[name], network_named(arguments.network), vram * GIB, kernels=not arguments.eager)
            total = fitted.memory.total / GIB
            patch = "×".join(map(str, fitted.patch_size))
            print(
                f"| {name} | {vram:g} | {patch} | {fitted.batch_size} | {fitted.checkpointing} | {total:.1f} "
                f"| {total / vram:.0%} | {fitted.limit} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
