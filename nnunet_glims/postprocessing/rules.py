"""Post-processing rules as data: presets, JSON files, and the result of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nnunet_glims.errors import UsageError
from nnunet_glims.releases import brats
from nnunet_glims.training.recipes import Count
from nnunet_glims.validation import nearest, read_model

Label = Annotated[int, Field(ge=0, le=255)]
Foreground = Annotated[int, Field(ge=1, le=255)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegionRule(_StrictModel):
    """A rule that paints a region.

    Attributes:
        name: name of the region, unique among the rules.
        labels: the labels that the region consists of.
        threshold: the region is painted where its probability is above this.
        paint: the label that is painted.
    """

    name: Annotated[str, Field(min_length=1)]
    labels: Annotated[list[Foreground], Field(min_length=1)]
    threshold: Probability = 0.5
    paint: Foreground


class ComponentRule(_StrictModel):
    """A rule that gives small 26-connected components of a label another label.

    Attributes:
        label: the label whose components are looked at.
        smaller_than: components with fewer voxels than this are changed.
        becomes: the label that they get; 0 is the background.
        region: name of a region. If it is given, only components are changed in which the mean probability of this
            region is below `mean_probability_below`.
        mean_probability_below: see `region`; both are given, or none.
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
    """A rule that fills holes: voxels that a label encloses (6 neighbours) get another label.

    Attributes:
        label: the label with holes.
        becomes: the label that the holes get.
    """

    label: Foreground
    becomes: Foreground


class Fitted(_StrictModel):
    """How rules were fitted, see `postprocessing.fit`.

    Attributes:
        model: name of the model's folder.
        cases: number of cases.
        folds: number of folds.
        dice: region -> "before", "after" and "p" of `postprocessing.fit.Effect`.
    """

    model: str
    cases: Count
    folds: Count
    dice: dict[str, dict[str, float]]


class Rules(_StrictModel):
    """All rules, in the order in which they are applied.

    Attributes:
        description: what the rules are for, in words.
        regions: painted in this order, later ones over earlier ones. Where there are none, the label map is that of
            nnU-Net, or with several models that of their mean.
        components: applied in this order; a rule sees what the rules before it changed.
        holes: applied last, in this order.
        fitted: how the rules were fitted; None where they were not.
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
        """Whether the rules need probabilities, and label maps do not suffice."""
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
    """Return a preset by its name, or the rules of a JSON file by its path.

    Raises:
        UsageError: there is no such preset or file, or the file is not valid. The message names what is wrong.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".json"):
        raise UsageError(
            f"preset {name!r} is unknown: {nearest(name, list(PRESETS))}. A file of rules must end in .json"
        )
    rules = read_model(Rules, Path(name))
    if rules.fitted is None and not (rules.regions or rules.components or rules.holes):
        raise UsageError(
            f"{name}: there is no rule in this file: regions, components or holes. --preset none changes nothing"
        )
    return rules


def rules_to_json(rules: Rules) -> dict[str, Any]:
    """Return rules as the content of a JSON file."""
    return rules.model_dump(exclude_none=True)
