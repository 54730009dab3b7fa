"""`nnunet-glims confusion`: which labels are taken for which."""

from __future__ import annotations

import argparse

HELP = "confusion matrices of evaluated models, row-normalised by case: mean and standard deviation over cases"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "entries", nargs="+", metavar="NAME=FOLDER", help="evaluated folders, or one YAML file that lists them"
    )
    parser.add_argument("-o", "--out", required=True, help="folder for confusion.csv, confusion.png, confusion.svg")
    parser.add_argument("--only-with", metavar="REGION", help="only cases whose truth has this region, such as ET")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    import matplotlib
    from matplotlib.figure import Figure
    from rich.console import Console

    from nnunet_glims.errors import UsageError
    from nnunet_glims.evaluation import confusion
    from nnunet_glims.files import new_file, write_text
    from nnunet_glims.report import matrices
    from nnunet_glims.report.entries import read_entries

    _, entries = read_entries(options.entries)
    results = {entry.name: entry.results for entry in entries}
    names = confusion.label_names(list(results.values()))
    labels = confusion.region_labels(results, options.only_with) if options.only_with else ()
    found = {name: confusion.over_cases(evaluated.cases, len(names), labels) for name, evaluated in results.items()}
    for name, matrix in found.items():
        if not matrix.cases.any():
            what = f"has {options.only_with}" if options.only_with else "was evaluated"
            raise UsageError(f"{name}: none of its {len(results[name].cases)} cases {what}")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "confusion.csv", confusion.table(found, names).to_csv(index=False))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nnunet-glims", "text.parse_math": False}):
        figure = Figure(figsize=matrices.size(len(found), len(names), with_sd=True), layout="constrained")
        means = {name: matrix.mean for name, matrix in found.items()}
        matrices.draw(figure, means, names, {name: matrix.sd for name, matrix in found.items()})
        for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with new_file(out / f"confusion.{ending}") as temporary:
                figure.savefig(temporary, dpi=150, metadata=metadata)
    console = Console(markup=False, highlight=False)
    for name, matrix in found.items():
        kept = ", ".join(
            f"{label} {matrix.mean[row, row]:.3f} ({matrix.cases[row]} cases)"
            for row, label in enumerate(names)
            if row and matrix.cases[row]
        )
        console.print(f"{name}: predicted as what it is: {kept}", soft_wrap=True)
    console.print(f"Wrote {out / 'confusion.csv'}, confusion.png and confusion.svg", soft_wrap=True)
