"""`python -m nnunet_glims.experiments.ensemble OUT MODEL MODEL --folds 0 1`: nnU-Net's ensemble of validation predictions."""

from __future__ import annotations

import argparse

from nnunetv2.ensembling.ensemble import ensemble_crossvalidations


def main() -> None:
    """Average the saved probabilities of the models' validation cases, fold by fold, into OUT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--folds", nargs="+", type=int, required=True)
    arguments = parser.parse_args()
    ensemble_crossvalidations(arguments.models, arguments.out, tuple(arguments.folds), overwrite=True)


if __name__ == "__main__":
    main()
