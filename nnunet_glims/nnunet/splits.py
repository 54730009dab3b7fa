"""nnU-Net's splits: the training and validation cases of each fold, as splits_final.json has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, RootModel

from nnunet_glims.errors import UsageError, UserError
from nnunet_glims.validation import read_model

FOLDS, SEED = 5, 12345
"""How nnU-Net draws splits, as `nnUNetTrainer.do_split` has it."""


class Fold(BaseModel):
    """The cases of one fold."""

    train: list[str]
    val: list[str]


class _Splits(RootModel[Annotated[list[Fold], Field(min_length=1)]]):
    pass


def read_splits(path: Path, error: type[UserError] = UsageError) -> list[Fold]:
    """Return the folds of a file of splits; see `validation.read_model` for the errors."""
    return read_model(_Splits, path, error).root
