"""Post-processing rules as data: built in, from a JSON file, or fitted by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json
from nnunet_glims.releases import brats
from nnunet_glims.training.recipes import Count
from nnunet_glims.validation import nearest, validate

Label = Annotated[int, Field(ge=0, le=255)]
Foreground = Annotated[int, Field(ge=1, le=255)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegionRule(_StrictModel):
    """Where a region's probability is above the threshold, the label `paint` is painted."""

    name: Annotated[str, Field(min_length=1)]
    labels: Annotated[list[Foreground], Field(min_length=1)]
    threshold: Probability = 0.5
    paint: Foreground


class ComponentRule(_StrictModel):
    """26-connected components of one label that have fewer voxels become another label.

    Attributes:
        label: whose components.
        smaller_than: voxels.
        becomes: the label they get; 0 is the background.
        region: if given, only components in which this region's mean probability is
        mean_probability_below: this.
    """

    label: Foreground
    smaller_than: Annotated[int, Field(ge=0)]
    becomes: Label = 0
    region: str | None = None
    mean_probability_below: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> ComponentRule:
        if (self.region is None) != (self.mean_probability_below is None):
            raise ValueError("region and mean_probability_below belong together: give both or none")
        return self


class HoleRule(_StrictModel):
    """What a label encloses, in the sense of 6 neighbours, becomes another label."""

    label: Foreground
    becomes: Foreground


class Fitted(_StrictModel):
    """How rules were fitted; see `nnunet_glims.postprocessing.fit`."""

    model: str
    cases: Count
    folds: Count
    dice: dict[str, dict[str, float]]


class Rules(_StrictModel):
    """What is done, in this order.

    Attributes:
        regions: painted one over the other. Empty: the label map stays as nnU-Net made it (of several models: the mean's).
        components: one after the other; a later rule sees what an earlier one changed.
        holes: likewise, at last.
        fitted: where the numbers come from, if they were fitted.
    """

    description: str = ""
    regions: list[RegionRule] = []
    components: list[ComponentRule] = []
    holes: list[HoleRule] = []
    fitted: Fitted | None = None

    @model_validator(mode="after")
    def _check(self) -> Rules:
        names = [region.name for region in self.regions]
        if len(set(names)) != len(names):
            raise ValueError(f"regions {', '.join(names)}: each may be there once")
        for rule in self.components:
            if rule.region is not None and rule.region not in names:
                raise ValueError(f"components: region {rule.region!r} is not among the regions ({', '.join(names)})")
        for part in self._changes:
            if part.label == part.becomes:
                raise ValueError(f"label {part.label} becomes itself")
        return self

    @property
    def _changes(self) -> list[ComponentRule | HoleRule]:
        return [*self.components, *self.holes]

    @property
    def needs_probabilities(self) -> bool:
        """Can they not be applied to label maps?"""
        return bool(self.regions)


_NCR, _ED, _ET = brats.NECROSIS, brats.EDEMA, brats.ENHANCING
_BRATS = {name: list(labels) for name, labels in brats.REGIONS.items()}

PRESETS: Mapping[str, Rules] = {
    "none": Rules(description="Nothing is changed; several models are averaged"),
    "glims_brats2023": Rules(
        description="GLIMS' inference for the BraTS 2023 challenge (arXiv 2403.09942 and the authors' code)",
        regions=[
            RegionRule(name="whole_tumor", labels=_BRATS["whole_tumor"], threshold=0.5, paint=_ED),
            RegionRule(name="tumor_core", labels=_BRATS["tumor_core"], threshold=0.6, paint=_NCR),
            RegionRule(name="enhancing_tumor", labels=_BRATS["enhancing_tumor"], threshold=0.6, paint=_ET),
        ],
        components=[
            ComponentRule(
                label=_ET, smaller_than=75, becomes=_NCR, region="enhancing_tumor", mean_probability_below=0.9
            ),
            ComponentRule(label=_NCR, smaller_than=75, becomes=_ED, region="tumor_core", mean_probability_below=0.9),
            ComponentRule(label=_ED, smaller_than=500, becomes=0, region="whole_tumor", mean_probability_below=0.9),
        ],
        holes=[HoleRule(label=_ET, becomes=_NCR)],
    ),
}


def load_rules(name: str) -> Rules:
    """A preset by name, or a JSON file by a path ending in .json; raises `UsageError` saying what is wrong."""
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".json"):
        raise UsageError(
            f"preset {name!r} is unknown: {nearest(name, list(PRESETS))}. A file of rules must end in .json"
        )
    return validate(Rules, read_json(Path(name)), name)


def rules_to_json(rules: Rules) -> dict[str, Any]:
    """As in a rules file."""
    return rules.model_dump(exclude_none=True)
