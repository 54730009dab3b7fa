"""`nnunet-glims demo`: train on a small data set and write a report, in minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_glims.cli.output import new_console

HELP = "train GLIMS and LATUP-Net for minutes on a small generated data set and write a report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything it writes (demo)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="where to train (cpu)")
    parser.add_argument(
        "--data", type=Path, help="a raw data set of nnU-Net (DatasetXXX_NAME) instead of the generated one"
    )


def run(options: argparse.Namespace) -> None:
    from nnunet_glims.demo.pipeline import run_demo

    run_demo(options.out, options.device, options.data, new_console())
