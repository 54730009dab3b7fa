"""The job that plans and preprocesses a data set, applies overrides and makes the splits, before trainings start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nnunet_glims.experiments.entry_plans import EntryPlans, data_identifier, is_preprocessed
from nnunet_glims.experiments.fingerprint import Ingredients, change_of, command_parts, digest, file_digest, present
from nnunet_glims.experiments.jobs.base import DONE, MISSING, Job, Outcome
from nnunet_glims.experiments.layout import SHARED_LOCK, Layout
from nnunet_glims.files import write_json
from nnunet_glims.locks import lock
from nnunet_glims.nnunet.plans.configuration import BASE_PLANS, read_plans
from nnunet_glims.validation import read_model

OVERRIDE = "override of "
WRITTEN = "written plans "
PLANS = "plans "
DATA_RECORD = "nnunet_glims_prepared.json"
"""Beside the preprocessed data, which several comparisons share: what they were made from, and what is to be made again."""


class DataRecord(BaseModel):
    """What a data set's plans and preprocessed data were made from.

    Attributes:
        ingredients: of the preprocessed data; empty where they were made before there was a record.
        replaces_plans: files of the comparisons whose users asked for plans of other content to be replaced.
        preprocesses_again: the user asked for the data to be preprocessed although they are there.
    """

    model_config = ConfigDict(extra="forbid")

    ingredients: Ingredients = {}
    replaces_plans: list[str] = []
    preprocesses_again: bool = False


class Prepare(Job):
    """Prepares a data set.

    Attributes:
        plans: of all entries and seeds.
    """

    kind = "prepare"

    def __init__(self, layout: Layout, name: str, dataset: int, plans: Sequence[EntryPlans]):
        super().__init__(layout, name, (), dataset)
        self.plans = plans

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
        record = self.data_record()
        is_there = base.exists() and all(
            is_preprocessed(folder, data_identifier(read_plans(base), name)) for name in self._configurations
        )
        commands = [] if is_there and not record.preprocesses_again else [self._planning(*self._configurations)]
        options = [
            *(["--overwrite"] if str(self.layout.path) in record.replaces_plans else []),
            *(["--preprocess-again"] if record.preprocesses_again else []),
        ]
        module = "nnunet_glims.experiments.prepare_dataset"
        asked = [str(self.layout.path), str(self.dataset), "--asked", self.asked]
        commands.append([sys.executable, "-m", module, *asked, *options])
        return commands

    @property
    def asked(self) -> str:
        """Digest of what the comparison asks for, by which a command sees that the file was changed after the job began."""
        return digest([(plans.name, plans.entry.configuration, plans.settings) for plans in self.plans])

    # ---- what the result is made from

    def _data_ingredients(self) -> Ingredients:
        """What preprocessed data are made from: images, label maps, and nnU-Net's command."""
        raw = self.layout.raw / self.layout.dataset_names[self.dataset]
        found: Ingredients = {"method version": self.method_version, "dataset.json": file_digest(raw / "dataset.json")}
        for name in ("imagesTr", "labelsTr"):
            found[name] = self.layout.listings.digest(raw / name)
        for configuration in self._configurations:
            found[f"planning of {configuration}"] = command_parts([self._planning(configuration)])
        return present(found)

    def ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Images, label maps, base plans and overrides, one by one, so that what is added later changes nothing."""
        folder = self.layout.dataset(self.dataset)
        found = self._data_ingredients()
        for plans in self.plans:
            found[f"{PLANS}{plans.entry.plans}"] = file_digest(folder / f"{plans.entry.plans}.json")
            found[f"{OVERRIDE}{plans.name} ({plans.entry.configuration})"] = plans.settings
            if plans.settings is not None:
                content = plans.content(self.dataset)
                written = None if content is None else content["configurations"]
                found[f"{WRITTEN}{plans.name} ({plans.entry.configuration})"] = written
        return present(found)

    def final_ingredients(self, before: Ingredients, commands: Sequence[Sequence[str]]) -> Ingredients:
        """With the plans that nnU-Net and the overrides have made meanwhile."""
        made = (PLANS, WRITTEN)
        kept = {name: value for name, value in before.items() if not name.startswith(made)}
        return {**self.ingredients(commands), **kept}

    def data_record(self) -> DataRecord:
        """What is recorded beside the preprocessed data."""
        path = self._record_file
        return read_model(DataRecord, path) if path.exists() else DataRecord()

    @property
    def _record_file(self) -> Path:
        return self.layout.dataset(self.dataset) / DATA_RECORD

    def _write_data_record(self, record: DataRecord) -> None:
        self._record_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._record_file, record.model_dump(mode="json"))

    def outcome(self) -> Outcome:
        """Done where all plans, data and splits are there and were made from the same ingredients."""
        record, of_data = self.folder.read(), self.data_record()
        if str(self.layout.path) in of_data.replaces_plans or of_data.preprocesses_again:
            return MISSING
        now = self.ingredients(())
        is_done = record is not None and record.ending == "done"
        own = record.ingredients if record is not None and is_done else {}
        change = change_of({**own, **of_data.ingredients}, now)
        if change is not None:
            return Outcome("unrecorded" if change.is_of_times_alone else "refused", change)
        return DONE if is_done and now.keys() <= own.keys() and self._is_complete() else MISSING

    def _is_complete(self) -> bool:
        folder = self.layout.dataset(self.dataset)
        if not (folder / "splits_final.json").exists():
            return False
        data = {plans.data(self.dataset) for plans in self.plans}
        return all(one is not None and is_preprocessed(folder, one.name) for one in data)

    def finish(self) -> None:
        """Record what the data were made from. Data that were there before are taken for those of the images as they are."""
        before = self.data_record()
        others = [path for path in before.replaces_plans if path != str(self.layout.path)]
        ingredients = {**before.ingredients, **self._data_ingredients()}
        self._write_data_record(DataRecord(ingredients=ingredients, replaces_plans=others))

    @contextmanager
    def work(self, commands: Sequence[Sequence[str]]) -> Iterator[bool]:
        """Lock the data set, because other comparisons may prepare it too; see `Job.work`."""
        folder = self.layout.dataset(self.dataset)
        with lock(folder / SHARED_LOCK, f"preparing {folder}"):
            yield True

    def adopt(self) -> str:
        """Take images that were copied again for those that the data were made from; see `Job.adopt`."""
        of_data, before = self._data_ingredients(), self.data_record()
        self._write_data_record(before.model_copy(update={"ingredients": {**before.ingredients, **of_data}}))
        record = self.folder.read()
        if record is not None:
            record.ingredients = {**record.ingredients, **of_data}
            self.folder.write(record)
        return f"{self.name}: adopted files of the same names and sizes"

    def discard(self) -> str | None:
        """Have plans replaced, and data preprocessed again if more than overrides changed; see `Job.discard`.

        What is to be made again is written down, so that it holds for the next run as well if this one is interrupted.
        """
        record, of_data = self.folder.read(), self.data_record()
        before = {**(record.ingredients if record is not None else {}), **of_data.ingredients}
        of_plans = (OVERRIDE, WRITTEN)
        now = self.ingredients(())
        ours = {name: value for name, value in now.items() if not name.startswith(of_plans)}
        only_plans = change_of(before, ours) is None and change_of(before, now) is not None
        self._write_data_record(
            DataRecord(
                ingredients=of_data.ingredients,
                replaces_plans=list(dict.fromkeys([*of_data.replaces_plans, str(self.layout.path)])),
                preprocesses_again=of_data.preprocesses_again or not only_plans,
            )
        )
        self.folder.record_file.unlink(missing_ok=True)
        return f"{self.name}: is made again" + (", without preprocessing what is there" if only_plans else "")
