"""`nnunet-glims confusion`: which labels are taken for which."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "confusion matrices of evaluated models, row-normalised by case: mean and standard deviation over cases"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "entries",
        nargs="+",
        metavar="NAME=FOLDER",
        help="evaluated folders, several of one name for its seeds; or one YAML file that lists them",
    )
    parser.add_argument("-o", "--out", required=True, help="folder for confusion.csv, confusion.png, confusion.svg")
    parser.add_argument("--only-with", metavar="REGION", help="only cases whose truth has this region, such as ET")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from nnunet_glims.report.entries import board_file_of_arguments, read_entries
    from nnunet_glims.report.matrices import write_confusion
    from nnunet_glims.report.remarks import unchecked

    entries = read_entries(board_file_of_arguments(options.entries))
    found, labels = write_confusion(entries, Path(options.out), options.only_with)
    console = new_console()
    for sentence in unchecked(entries):
        console.print(sentence, soft_wrap=True)
    for name, matrix in found.items():
        kept = ", ".join(
            f"{label} {matrix.mean[row, row]:.3f} ({matrix.cases[row]} cases)"
            for row, label in enumerate(labels)
            if row and matrix.cases[row]
        )
        console.print(f"{name}: predicted as what it is: {kept}", soft_wrap=True)
    console.print(f"Wrote {Path(options.out) / 'confusion.csv'}, confusion.png and confusion.svg", soft_wrap=True)
