"""`nnunet-glims doctor`: what keeps a training from running well."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "look for what keeps a training from running well: versions, folders, plans, memory"
WIDTH_OF_FILES = 10_000
"""Characters of a line where the output is no terminal: commands must not be broken, so that they can be copied."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", help="number or name of a data set to look at as well")
    parser.add_argument(
        "-tr", "--trainer", default="nnUNetTrainerGLIMS", help="as for nnUNetv2_train (nnUNetTrainerGLIMS)"
    )
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="as for nnUNetv2_train (nnUNetPlans)")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="as for nnUNetv2_train (3d_fullres)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 1 if a check fails, else 0."""
    import json
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from nnunet_glims.doctor import examine

    findings = list(examine(options.dataset, options.trainer, options.plans, options.configuration))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=4))
    else:
        table = Table(show_header=False, box=None)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for finding in findings:
            way_out = f"\n→ {finding.way_out}" if finding.way_out else ""
            verdict = Text(finding.verdict, colours[finding.verdict])
            table.add_row(verdict, finding.topic, f"{finding.state}{way_out}")
        console = new_console()
        if not console.is_terminal:
            console.width = WIDTH_OF_FILES
        console.print(table)
    return int(any(finding.verdict == "fail" for finding in findings))
