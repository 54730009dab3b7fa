"""nnU-Net's ensemble of validation predictions.

`python -m nnunet_glims.experiments.ensemble_predictions OUT MODEL MODEL --folds 0 1`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2.ensembling.ensemble import ensemble_crossvalidations

from nnunet_glims.files import new_folder


def main() -> None:
    """Average the saved probabilities of the models' validation cases, fold by fold, and write the results to OUT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--folds", nargs="+", type=int, required=True)
    arguments = parser.parse_args()
    with new_folder(Path(arguments.out)) as folder:  # nothing of other folds or members stays
        ensemble_crossvalidations(arguments.models, str(folder), tuple(arguments.folds), overwrite=True)


if __name__ == "__main__":
    main()
