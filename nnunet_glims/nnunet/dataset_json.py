"""What may stand in nnU-Net's dataset.json: types, limits, and what nnU-Net asks of its labels. Other keys are left alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nnunet_glims.errors import UsageError, cut
from nnunet_glims.files import read_json_document
from nnunet_glims.validation import list_problems, validate

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

Label = Annotated[int, Field(ge=0, lt=2**31)]


class DatasetJson(BaseModel):
    """The keys of dataset.json that this package reads."""

    model_config = ConfigDict(extra="allow")

    channel_names: Annotated[dict[str, str], Field(min_length=1)]
    labels: Annotated[dict[str, Label | Annotated[list[Label], Field(min_length=1)]], Field(min_length=1)]
    file_ending: Annotated[str, Field(pattern=r"^\.[A-Za-z0-9][A-Za-z0-9.]*$", max_length=20)]
    numTraining: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    regions_class_order: list[Label] | None = None
    overwrite_image_reader_writer: str | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _check_order(cls, labels: Any) -> Any:
        texts = [name for name, value in labels.items() if isinstance(value, str)] if isinstance(labels, dict) else []
        if texts:
            name = texts[0]
            raise ValueError(
                f"{cut(name)}: nnU-Net v2 has names first and numbers after them, not {labels[name]!r:.80}"
            )
        return labels


def read_dataset_json(path: Path) -> Mapping[str, Any]:
    """Return the content of a dataset.json of nnU-Net v2.

    Raises:
        UsageError: the file is missing or has another form. The message lists every problem with line and key.
    """
    document = read_json_document(path)
    try:
        validate(DatasetJson, document.content, str(path), document.line_of)
    except UsageError as error:
        raise UsageError(f"{error}\nThis is no dataset.json of nnU-Net v2: correct it") from None
    content = document.content
    wanted = [str(number) for number in range(len(content["channel_names"]))]
    if set(content["channel_names"]) != set(wanted):
        text = f"the channels must be numbered {', '.join(wanted)}, not {', '.join(content['channel_names'])}"
        raise UsageError(list_problems([(["channel_names"], cut(text, 200))], str(path), document.line_of))
    return content


def number_of_cases(path: Path) -> int:
    """Return the number of training cases that a dataset.json states; raise `UsageError` if it does not state any."""
    cases = read_dataset_json(path).get("numTraining")
    if cases is None:
        raise UsageError(f"{path}: numTraining: this key is required")
    return cases


def label_manager(plans: Mapping[str, Any], path: Path) -> LabelManager:
    """Return nnU-Net's label manager for plans and a dataset.json; raise `UsageError` where nnU-Net refuses the labels."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    content = read_dataset_json(path)
    try:
        return PlansManager(dict(plans)).get_label_manager(dict(content))
    except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: labels: nnU-Net refuses these: {error}") from None
