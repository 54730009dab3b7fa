"""The parts of a data set's conversion_report.json that other commands read."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from nnunet_glims.datasets.conversion import REPORT
from nnunet_glims.errors import ProcessingError
from nnunet_glims.validation import read_model


class ConversionReport(BaseModel):
    """What `nnunet-glims convert` recorded.

    Attributes:
        release: name of the release.
        label_in_release: label of the data set -> label of the release.
        patients: case -> patient.
    """

    release: str
    label_in_release: dict[int, int]
    patients: dict[str, str] = Field(default_factory=dict)


def read_conversion_report(dataset: Path) -> ConversionReport | None:
    """Return the report of a raw data set; None if it has none.

    Raises:
        ProcessingError: the file is damaged or no such report.
    """
    path = dataset / REPORT
    return read_model(ConversionReport, path, ProcessingError) if path.exists() else None
