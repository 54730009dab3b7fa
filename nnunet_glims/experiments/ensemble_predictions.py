"""Average the validation predictions of several models with nnU-Net's ensembling.

Usage: `python -m nnunet_glims.experiments.ensemble_predictions OUT MODEL MODEL --folds 0 1`.
"""

from __future__ import annotations

import argparse

from nnunetv2.ensembling.ensemble import ensemble_crossvalidations


def main() -> None:
    """Average the saved probabilities of the models' validation cases, fold by fold, and write the results to OUT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--folds", nargs="+", type=int, required=True)
    arguments = parser.parse_args()
    ensemble_crossvalidations(arguments.models, arguments.out, tuple(arguments.folds), overwrite=True)


if __name__ == "__main__":
    main()
