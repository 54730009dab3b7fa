"""The job that plans and preprocesses a data set, applies overrides and makes the splits, before trainings start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nnunet_glims.experiments.entry_plans import EntryPlans, data_identifier, is_preprocessed
from nnunet_glims.experiments.fingerprint import Ingredients, change_of, command_parts, file_digest, present
from nnunet_glims.experiments.jobs.base import DONE, MISSING, Job, Outcome
from nnunet_glims.experiments.layout import Layout
from nnunet_glims.files import read_json
from nnunet_glims.locks import lock
from nnunet_glims.nnunet.plans.configuration import BASE_PLANS

OVERRIDE = "override of "
PLANS = "plans "
LOCK = ".nnunet_glims.lock"


class Prepare(Job):
    """Prepares a data set.

    Attributes:
        plans: the plans of all entries and seeds.
        replaces_plans: whether existing plans files with other content are replaced; set by `discard`.
        preprocesses_again: whether data are preprocessed although preprocessed data exist; set by `discard`.
    """

    kind = "prepare"

    def __init__(self, layout: Layout, name: str, dataset: int, plans: Sequence[EntryPlans]):
        super().__init__(layout, name, (), dataset)
        self.plans = plans
        self.replaces_plans = False
        self.preprocesses_again = False

    @property
    def environment(self) -> dict[str, str]:
        """Variables to set: nnU-Net's planner needs a process, even where trainings have no data loading processes."""
        return {"nnUNet_n_proc_DA": "1"} if os.environ.get("nnUNet_n_proc_DA") == "0" else {}

    @property
    def _configurations(self) -> list[str]:
        return list(dict.fromkeys(entry.configuration for entry in self.layout.comparison.entries))

    def _planning(self, *configurations: str) -> list[str]:
        cores = str(self.layout.comparison.resources.cpus)
        return [
            "nnUNetv2_plan_and_preprocess", "-d", str(self.dataset), "-c", *configurations, "--verify_dataset_integrity",
            "-npfp", cores, "-np", cores,
        ]  # fmt: skip

    def commands(self) -> list[list[str]]:
        """Return the commands for planning and preprocessing where data are missing, then for overrides and splits."""
        folder = self.layout.dataset(self.dataset)
        base = folder / f"{BASE_PLANS}.json"
        is_there = base.exists() and all(
            is_preprocessed(folder, data_identifier(read_json(base), name)) for name in self._configurations
        )
        commands = [] if is_there and not self.preprocesses_again else [self._planning(*self._configurations)]
        options = [
            *(["--overwrite"] if self.replaces_plans else []),
            *(["--preprocess-again"] if self.preprocesses_again else []),
        ]
        module = "nnunet_glims.experiments.prepare_dataset"
        commands.append([sys.executable, "-m", module, str(self.layout.path), str(self.dataset), *options])
        return commands

    def ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return images, label maps, base plans and overrides, each under its own name, so that additions change no others."""
        folder, raw = self.layout.dataset(self.dataset), self.layout.raw / self.layout.dataset_names[self.dataset]
        found: Ingredients = {"method version": self.method_version, "dataset.json": file_digest(raw / "dataset.json")}
        for name in ("imagesTr", "labelsTr"):
            found[name] = self.layout.listings.digest(raw / name)
        for configuration in self._configurations:
            found[f"planning of {configuration}"] = command_parts([self._planning(configuration)])
        for plans in self.plans:
            found[f"{PLANS}{plans.entry.plans}"] = file_digest(folder / f"{plans.entry.plans}.json")
            found[f"{OVERRIDE}{plans.name} ({plans.entry.configuration})"] = plans.settings
        return present(found)

    def final_ingredients(self, before: Ingredients, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return the ingredients with the base plans that nnU-Net has made in the meantime."""
        now = self.ingredients(commands)
        return {**now, **{name: value for name, value in before.items() if not name.startswith(PLANS)}}

    def outcome(self) -> Outcome:
        """Return "done" if all plans, data and splits exist and were made from the same ingredients."""
        record = self.folder.read()
        if record is None or record.ending != "done":
            return MISSING
        now = self.ingredients(())
        change = change_of(record.ingredients, now)
        if change is not None:
            return Outcome("unrecorded" if change.is_of_times_alone else "refused", change)
        return DONE if now.keys() <= record.ingredients.keys() and self._is_complete() else MISSING

    def _is_complete(self) -> bool:
        folder = self.layout.dataset(self.dataset)
        if not (folder / "splits_final.json").exists():
            return False
        data = {plans.data(self.dataset) for plans in self.plans}
        return all(one is not None and is_preprocessed(folder, one.name) for one in data)

    @contextmanager
    def work(self, commands: Sequence[Sequence[str]]) -> Iterator[bool]:
        """Lock the data set, because other comparisons may prepare it too; see `Job.work`."""
        folder = self.layout.dataset(self.dataset)
        with lock(folder / LOCK, f"preparing {folder}"):
            yield True

    def adopt(self) -> str:
        """Accept images that were copied again as those that the data were made from; see `Job.adopt`."""
        record = self.folder.read()
        assert record is not None, "without a record the job is missing"
        record.ingredients = {**record.ingredients, **self.ingredients(())}
        self.folder.write(record)
        return f"{self.name}: adopted files of the same names and sizes"

    def discard(self) -> str | None:
        """Replace the plans, and preprocess again if more than overrides has changed; see `Job.discard`."""
        self.replaces_plans = True
        record = self.folder.read()
        if record is not None:
            now = self.ingredients(())
            ours = {name: value for name, value in now.items() if not name.startswith(OVERRIDE)}
            only_overrides = (
                change_of(record.ingredients, ours) is None and change_of(record.ingredients, now) is not None
            )
            self.preprocesses_again = not only_overrides
            self.folder.record_file.unlink()
        return f"{self.name}: is made again" + (
            "" if self.preprocesses_again else ", without preprocessing what is there"
        )
