"""The plans of an entry: the override that makes them, and the part of them that a training depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.comparison import Entry
from nnunet_glims.experiments.layout import Layout
from nnunet_glims.files import write_json
from nnunet_glims.networks import trained_by
from nnunet_glims.nnunet.dataset_json import number_of_cases
from nnunet_glims.nnunet.plans.configuration import read_plans
from nnunet_glims.nnunet.plans.content import resolved
from nnunet_glims.nnunet.plans.override import load_override
from nnunet_glims.nnunet.plans.record import without_record


@dataclass(frozen=True)
class EntryPlans:
    """The plans that an entry is trained with, for one seed.

    Attributes:
        layout: folders of the comparison.
        entry: the entry of the comparison.
        seed: seed of the trainings; None for trainings without a seed.
    """

    layout: Layout
    entry: Entry
    seed: int | None

    @property
    def name(self) -> str:
        """Name of the plans."""
        return self.layout.plans_name(self.entry, self.seed)

    @property
    def is_derived(self) -> bool:
        """Whether the comparison writes its own override for these plans, with the entry's settings and seed."""
        return bool(self.entry.training) or self.seed is not None

    @cached_property
    def override(self) -> dict[str, Any] | None:
        """The content of the override that makes the plans; None where the base plans are used unchanged."""
        entry = self.entry
        content: dict[str, Any] = {"description": entry.name, "source": self.layout.path.name}
        if entry.override is not None:
            content = load_override(entry.override)[1].model_dump(exclude_defaults=True)
        elif not self.is_derived:
            return None
        if self.is_derived:
            assert entry.network is not None, "checked with the file"
            content.setdefault("network", entry.network.name)
            content["training"] = {**content.get("training", {}), **entry.training}
            if self.seed is not None:
                content["training"]["seed"] = self.seed
        return content

    @property
    def settings(self) -> dict[str, Any] | None:
        """The override without its texts, with the name of the base plans; None where the base plans are used unchanged."""
        if self.override is None:
            return None
        texts = ("description", "source")
        return {"base": self.entry.plans, **{key: value for key, value in self.override.items() if key not in texts}}

    def written_override(self) -> str | None:
        """Return the name or path of the override, after writing its file if it is the comparison's own.

        Returns None where the base plans are used unchanged.
        """
        if not self.is_derived:
            return self.entry.override
        path = self.layout.derived_override(self.entry, self.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.override)
        return str(path)

    def path(self, dataset: int) -> Path:
        """Return the path of the plans file of a data set, given by its number."""
        return self.layout.plans(dataset, self.entry, self.seed)

    def content(self, dataset: int) -> dict[str, Any] | None:
        """Return the plans with the entry's configuration only; None where the plans or this configuration do not exist yet."""
        path = self.path(dataset)
        if not path.exists():
            return None
        plans = without_record(read_plans(path))
        chosen, name = {}, self.entry.configuration
        while name in plans["configurations"]:
            chosen[name] = plans["configurations"][name]
            name = chosen[name].get("inherits_from", "")
        return {**plans, "configurations": chosen} if chosen else None

    def asked_configuration(self, dataset: int) -> dict[str, Any]:
        """The entry's configuration with what the override and the trainer change in it, as far as plans are there yet."""
        content = self.content(dataset)
        name = self.entry.configuration
        asked = {} if content is None else resolved(content["configurations"], name)
        override = self.override or {}
        asked |= {key: override[key] for key in ("patch_size", "batch_size", "spacing") if key in override}
        asked["training"] = {**asked.get("training", {}), **override.get("training", {})}
        if self.entry.network is not None:
            network, fixed = trained_by(self.entry.trainer)
            planned = asked.get("architecture", {})
            given = planned.get("arch_kwargs", {}) if planned.get("network_class_name") == network.path else {}
            arguments = {**given, **override.get("network_arguments", {}), **fixed}
            asked["architecture"] = {"network_class_name": network.path, "arch_kwargs": arguments}
        return asked

    def data(self, dataset: int) -> Path | None:
        """Return the folder of preprocessed data; None where the plans do not exist yet."""
        plans = self.content(dataset)
        if plans is None:
            return None
        return self.path(dataset).parent / data_identifier(plans, self.entry.configuration)


def data_identifier(plans: Mapping[str, Any], configuration: str) -> str:
    """Return the name of a configuration's folder of preprocessed data; raise `UsageError` if the plans do not name any."""
    configurations = plans["configurations"]
    if configuration not in configurations:
        raise UsageError(
            f"{plans['plans_name']}: there is no configuration {configuration!r}, only {', '.join(configurations)}"
        )
    identifier = resolved(configurations, configuration).get("data_identifier")
    if identifier is None:
        raise UsageError(f"{plans['plans_name']}: {configuration}: it has no data_identifier: plan again")
    return identifier


def is_preprocessed(folder: Path, data: str) -> bool:
    """Return whether a folder of preprocessed data holds all cases of the data set. nnU-Net writes a case's .pkl last."""
    return len(list((folder / data).glob("*.pkl"))) >= number_of_cases(folder / "dataset.json")
