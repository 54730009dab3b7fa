"""`nnunet-glims import-released`: the GLIMS authors' weights for stock nnU-Net."""

from __future__ import annotations

import argparse

HELP = "the GLIMS authors' published checkpoint as a model folder that nnUNetv2_predict_from_modelfolder runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", help="the authors' checkpoint (.pt, .pth)")
    parser.add_argument("folder", help="model folder to make, or one made by this command to add a fold to")
    parser.add_argument("--fold", type=int, default=0, help="number of the fold that these weights are (default: 0)")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from nnunet_glims.nnunet.released import CHANNELS, import_released

    width = import_released(Path(options.weights), Path(options.folder), options.fold)
    print(f"wrote {options.folder}, fold {options.fold}: GLIMS of width {width}")
    print(f"Channels of the images: {', '.join(f'{number:04d} {name}' for number, name in enumerate(CHANNELS))}")
    print(f"Predict:\n  nnUNetv2_predict_from_modelfolder -i IMAGES -o OUT -m {options.folder} -f {options.fold}")
