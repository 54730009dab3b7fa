"""The paths and names of all files of a comparison. Only the YAML file is read, and nothing is written."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.comparison import (
    Comparison,
    Entry,
    derived_override_name,
    file_name,
    plans_name,
    read_comparison,
    seeded_name,
)
from nnunet_glims.experiments.fingerprint import Listings
from nnunet_glims.experiments.state import JobFolder

SHARED_LOCK = ".nnunet_glims.lock"
"""Lock in a folder of nnU-Net that several comparisons may work on: a data set, a fold."""
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class Layout:
    """The folders of a comparison.

    Attributes:
        path: path of the YAML file.
        comparison: its content.
        raw, preprocessed, results: nnU-Net's folders.
        state: the folder NAME.run beside the YAML file, with jobs, tables, derived overrides and the report.
        dataset_names: name of each data set by its number.
        trust: whether plans may have any network imported and called, where networks are built for costs and times.
        listings: digests of folders of large files, kept until `Experiment.look_again` is called.

    Raises:
        UsageError: on construction, if the YAML file is wrong, nnU-Net's variables are not set, or a data set is missing.
    """

    def __init__(self, path: Path, trust: bool = False):
        self.path = path.resolve()
        self.trust = trust
        self.comparison: Comparison = read_comparison(path)
        missing = [name for name in FOLDERS if not os.environ.get(name)]
        if missing:
            raise UsageError(f"the environment variable {missing[0]} is not set: nnU-Net needs {', '.join(FOLDERS)}")
        self.raw, self.preprocessed, self.results = (Path(os.environ[name]) for name in FOLDERS)
        stem = self.path.name.removesuffix(".yaml")  # of another ending the whole name, so that no two files share it
        self.state = self.path.with_name(f"{stem}.run")
        self.listings = Listings()
        self.dataset_names = {number: self._dataset_name(number) for number in self.comparison.datasets}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which reads folders itself instead of taking over their digests."""
        return {**self.__dict__, "listings": Listings()}

    def _dataset_name(self, number: int) -> str:
        found = {
            path.name for folder in (self.raw, self.preprocessed) for path in folder.glob(f"Dataset{number:03d}_*")
        }
        if len(found) != 1:
            what = (
                f"{len(found)} data sets have that number: {', '.join(sorted(found))}"
                if found
                else "there is no such data set"
            )
            raise UsageError(f"{self.path}: datasets: {number}: {what} in {self.raw} and {self.preprocessed}")
        return found.pop()

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The entries by their names."""
        return {entry.name: entry for entry in self.comparison.entries}

    @property
    def lock(self) -> Path:
        """The file of the lock that a run of the comparison holds."""
        return self.state / "run.lock"

    @property
    def slurm_numbers(self) -> Path:
        """The file with SLURM's number of each job."""
        return self.state / "slurm.jsonl"

    @property
    def submitit(self) -> Path:
        """The folder of submitit's files."""
        return self.state / "submitit"

    def job(self, name: str) -> JobFolder:
        """Return the folder of a job."""
        return JobFolder(self.state / "jobs" / name)

    def dataset(self, number: int) -> Path:
        """Return the folder of a data set's plans and preprocessed data."""
        return self.preprocessed / self.dataset_names[number]

    def truths(self, number: int) -> Path:
        """Return the folder of a data set's true label maps, as nnU-Net keeps them."""
        return self.dataset(number) / "gt_segmentations"

    def plans_name(self, entry: Entry, seed: int | None) -> str:
        """Return the name of the plans that an entry is trained with."""
        return plans_name(self.path, entry, seed)

    def plans(self, number: int, entry: Entry, seed: int | None) -> Path:
        """Return the file of the plans that an entry is trained with."""
        return self.dataset(number) / f"{self.plans_name(entry, seed)}.json"

    def derived_override(self, entry: Entry, seed: int | None) -> Path:
        """Return the file of the override that adds an entry's settings and seed."""
        return self.state / "plans" / f"{derived_override_name(self.path, entry, seed)}.json"

    def model(self, number: int, entry: Entry, seed: int | None) -> Path:
        """Return the model folder of an entry."""
        name = f"{entry.trainer}__{self.plans_name(entry, seed)}__{entry.configuration}"
        return self.results / self.dataset_names[number] / name

    def evaluation(self, number: int, entry: Entry, seed: int | None) -> Path:
        """Return the folder of an entry's tables. Each comparison has its own, because presets may differ."""
        return self.state / "evaluations" / f"D{number:03d}_{seeded_name(entry, seed)}"

    def ensemble(self, number: int, members: tuple[str, ...], seed: int | None) -> Path:
        """Return the folder of an ensemble's predictions and tables."""
        seeded = "" if seed is None else f"_seed{seed}"
        return self.state / "ensembles" / f"D{number:03d}_{'+'.join(map(file_name, members))}{seeded}"

    def report(self, number: int) -> Path:
        """Return the folder of a data set's leaderboard."""
        return self.state / "report" / self.dataset_names[number]
