"""`nnunet-glims postprocess`: average predictions and apply rules for thresholds, small components and holes."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "average predictions and post-process them: thresholds, small components, holes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "predictions",
        nargs="+",
        help="folders of nnUNetv2_predict --save_probabilities, one per model, with the same cases",
    )
    parser.add_argument("-o", "--out", required=True, help="folder to make")
    parser.add_argument(
        "--preset", required=True, help="glims_brats2023, none, or a .json file of rules (nnunet-glims postprocess-fit)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: as many as cores and memory allow, at most 8)")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from nnunet_glims.cli.progress import progress_on
    from nnunet_glims.files import check_output_folder
    from nnunet_glims.postprocessing.folders import postprocess
    from nnunet_glims.postprocessing.rules import load_rules
    from nnunet_glims.processes import workers_or_default

    check_output_folder(Path(options.out))
    console = new_console()
    changed = postprocess(
        [Path(folder) for folder in options.predictions],
        load_rules(options.preset),
        Path(options.out),
        workers_or_default(options.workers),
        progress_on(console),
    )
    cases = sum(voxels > 0 for voxels in changed.values())
    console.print(
        f"Wrote {options.out}: {len(changed)} cases, {cases} of them changed ({sum(changed.values())} voxels)",
        soft_wrap=True,
        highlight=False,
    )
