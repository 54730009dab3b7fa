"""The option --trust of all commands that read model folders."""

from __future__ import annotations

import argparse


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let plans and checkpoints have any code imported and called: only for models whose origin you know",
    )
