"""The job that trains one fold with nnU-Net's own command."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.experiments.entry_plans import EntryPlans
from nnunet_glims.experiments.fingerprint import Change, Ingredients, change_of, digest, file_digest, present
from nnunet_glims.experiments.jobs.base import DONE, MISSING, Job, Outcome
from nnunet_glims.experiments.layout import SHARED_LOCK, Layout
from nnunet_glims.experiments.state import ProcessRecord, TrainingRecord
from nnunet_glims.locks import Holder, LockHeld, holder_of, lock
from nnunet_glims.nnunet.plans.configuration import read_plans
from nnunet_glims.nnunet.splits import read_splits
from nnunet_glims.nnunet.training_log import TRAINING_LOCK, read_training_log
from nnunet_glims.training.recipes import PRECISION_VARIABLE

REPLACED = "replaced"
"""Name of the folder in a model folder to which discarded trainings are moved."""
PREPROCESSED = (".pkl", ".b2nd", ".npz")
COMPARED = ("patch_size", "batch_size", "spacing", "normalization_schemes")
FOLLOWING_ARGUMENTS = ("patch_size", "strides", "checkpointing")
"""Arguments of networks that follow from the patch and the spacing, or change no result."""


class Train(Job):
    """Trains an entry on one fold.

    Attributes:
        plans: the plans of the entry.
        fold: number of the fold.
        keeps_probabilities: whether nnU-Net saves the probabilities of the validation cases, for ensembles.
    """

    kind = "train"
    gpu = True

    def __init__(
        self,
        layout: Layout,
        name: str,
        needs: Sequence[str],
        dataset: int,
        plans: EntryPlans,
        fold: int,
        keeps_probabilities: bool,
    ):
        super().__init__(layout, name, needs, dataset)
        self.plans = plans
        self.fold = fold
        self.keeps_probabilities = keeps_probabilities

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.layout.model(self.dataset, self.plans.entry, self.plans.seed)

    @property
    def fold_folder(self) -> Path:
        """The folder of the fold in the model folder."""
        return self.model / f"fold_{self.fold}"

    def commands(self) -> list[list[str]]:
        """Return the command of `nnUNetv2_train`, which continues from a checkpoint if there is one."""
        asked, entry = self.layout.comparison, self.plans.entry
        command = [
            "nnUNetv2_train", self.layout.dataset_names[self.dataset], entry.configuration, str(self.fold),
            "-tr", entry.trainer, "-p", self.plans.name, "-device", asked.device, "--c",
        ]  # fmt: skip
        if asked.device == "cuda" and asked.resources.gpus > 1:
            command += ["-num_gpus", str(asked.resources.gpus)]
        if self.keeps_probabilities:
            command.append("--npz")
        return [command]

    def ingredients(self, commands: Sequence[Sequence[str]]) -> Ingredients:
        """Return the override, plans, split, dataset.json, preprocessed data, and the precision variable."""
        folder = self.layout.dataset(self.dataset)
        splits = folder / "splits_final.json"
        folds = read_splits(splits) if splits.exists() else []
        data = self.plans.data(self.dataset)
        return present(
            {
                **self.common_ingredients(commands),
                "precision": self._precision(),
                "override": self.plans.settings,
                "plans": self.plans.content(self.dataset),
                "split": digest(folds[self.fold].model_dump()) if self.fold < len(folds) else None,
                "dataset.json": file_digest(folder / "dataset.json"),
                "preprocessed data": None if data is None else self.layout.listings.digest(data, PREPROCESSED),
            }
        )

    def _precision(self) -> str | None:
        """The precision setting that holds: the environment variable's, or the plans'; None for nnU-Net's own trainers."""
        if self.plans.entry.network is None:
            return None
        training = self.plans.asked_configuration(self.dataset).get("training", {})
        planned = training.get("precision", self.plans.entry.network.recipe.precision)
        if not os.environ.get(PRECISION_VARIABLE):
            return planned
        from nnunet_glims.training.precision import chosen

        return chosen(planned)

    def outcome(self) -> Outcome:
        """Return "done" if the training and its validation are complete and the fold's record has the same ingredients."""
        return self._outcome(None)

    def _outcome(self, commands: Sequence[Sequence[str]] | None) -> Outcome:
        """Return the state of the result of these commands; None stands for the commands that are asked for now."""
        fold = self.fold_folder
        if not any(fold.glob("checkpoint_*.pth")):  # there is no training that could be lost
            return MISSING
        record = TrainingRecord.read(fold)
        if record is None:
            return Outcome("unrecorded")
        change = change_of(record.ingredients, self.ingredients(self.commands() if commands is None else commands))
        if change is not None:
            return Outcome("unrecorded" if change.is_of_times_alone else "refused", change)
        return DONE if self._is_complete() else MISSING

    def _is_complete(self) -> bool:
        fold = self.fold_folder
        made = (fold / "checkpoint_final.pth").exists() and (fold / "validation/summary.json").exists()
        return made and (not self.keeps_probabilities or any((fold / "validation").glob("*.npz")))

    @contextmanager
    def work(self, commands: Sequence[Sequence[str]]) -> Iterator[bool]:
        """Lock the fold, because other comparisons may train it too, and record what it is trained from; see `Job.work`."""
        fold = self.fold_folder
        what = f"training {fold}"
        with lock(fold / SHARED_LOCK, what):
            record = TrainingRecord.read(fold)
            if record is not None and record.process is not None and record.process.process.is_alive:
                raise LockHeld(what, Holder(record.process.process, record.written, ""))
            if (holder := holder_of(fold / TRAINING_LOCK)) is not None:  # nnUNetv2_train beside this comparison
                raise LockHeld(what, holder)
            outcome = self._outcome(commands)
            if outcome.state == "refused":
                raise UsageError(f"{fold}: {outcome.change}")
            if outcome.state == "unrecorded":
                reason = outcome.change or "nothing says what this training was made from"
                raise UsageError(f"{fold}: {reason}; run with --adopt to take it")
            if not outcome.is_done:
                before = {} if record is None else record.ingredients
                TrainingRecord(
                    ingredients={**before, **self.ingredients(commands)},
                    comparison=str(self.layout.path),
                    adopted=record is not None and record.adopted,
                    written=time.time(),
                ).write(fold)
            yield not outcome.is_done

    def note_process(self, process: ProcessRecord) -> None:
        """Add the process to the fold's record."""
        record = TrainingRecord.read(self.fold_folder)
        if record is not None:
            record.process, record.written = process, time.time()
            record.write(self.fold_folder)

    def check_adoption(self) -> None:
        """Compare the plans in the model folder with what is asked for; see `Job.check_adoption`."""
        if TrainingRecord.read(self.fold_folder) is not None:
            return  # only times of files differ from the record
        path = self.model / "plans.json"
        if not path.exists():
            raise UsageError(f"{self.fold_folder}: cannot be adopted: there is no {path}, with which it was trained")
        trained = read_plans(path)["configurations"].get(self.plans.entry.configuration, {})
        network = self.plans.entry.network
        recipe = None if network is None else network.recipe.model_dump(mode="json")
        change = contradiction(trained, self.plans.asked_configuration(self.dataset), recipe)
        if change is not None:
            raise UsageError(
                f"{self.fold_folder}: cannot be adopted: {change.name} was {change.before} when it was trained (by {path}) and "
                f"would be {change.now} now"
            )

    def adopt(self) -> str:
        """Record a training of an earlier release as the one that is asked for; see `Job.adopt`."""
        TrainingRecord(
            ingredients=self.ingredients(self.commands()),
            comparison=str(self.layout.path),
            adopted=True,
            written=time.time(),
        ).write(self.fold_folder)
        return f"{self.name}: adopted {self.fold_folder}, which does not contradict what is asked for"

    def discard(self) -> str | None:
        """Move the training aside; see `Job.discard`."""
        fold = self.fold_folder
        if not fold.exists():
            return None
        record = TrainingRecord.read(fold)
        if record is not None and record.process is not None and record.process.process.is_alive:
            raise LockHeld(f"training {fold}", Holder(record.process.process, record.written, ""))
        if (holder := holder_of(fold / TRAINING_LOCK)) is not None:
            raise LockHeld(f"training {fold}", holder)
        with lock(fold / SHARED_LOCK, f"training {fold}"):
            aside = self.model / REPLACED / f"{fold.name}_{time.strftime('%Y%m%d-%H%M%S')}"
            aside.parent.mkdir(exist_ok=True)
            fold.rename(aside)
        return f"{self.name}: is made again; the old training is now {aside}"

    def progress(self) -> str:
        """Return epoch, pseudo Dice and remaining time, from nnU-Net's log."""
        fold = self.fold_folder
        log = read_training_log(fold)
        done = len(log.curves["pseudo Dice"])
        epochs = _epochs(fold)
        text = f"epoch {done}" + (f" of {epochs}" if epochs else "")
        if done:
            text += f", pseudo Dice {log.curves['pseudo Dice'][-1]:.3f}"
            if done == epochs:
                text += ", validation"
            elif epochs and log.hours is not None:
                left = log.hours / done * (epochs - done)
                text += f", {left:.1f} h left" if left >= 1 else f", {ceil(60 * left)} min left"
        return text


def contradiction(
    trained: Mapping[str, Any], asked: Mapping[str, Any], recipe: Mapping[str, Any] | None
) -> Change | None:
    """Return the first setting in which the configuration that a model was trained with is not the one that is asked for.

    Args:
        trained: configuration in the model folder's plans.
        asked: configuration that the comparison asks for.
        recipe: training settings of the trainer where plans leave them out; None for trainers without a recipe.
    """

    def shown(configuration: Mapping[str, Any]) -> Ingredients:
        found = {key: configuration[key] for key in COMPARED if key in configuration}
        architecture = configuration.get("architecture", {})
        arguments = architecture.get("arch_kwargs", {})
        found["network"] = architecture.get("network_class_name")
        found["network arguments"] = {key: value for key, value in arguments.items() if key not in FOLLOWING_ARGUMENTS}
        return found

    explicit, found = asked.get("training", {}), trained.get("training", {})
    known = {key: value for key, value in (recipe or {}).items() if key in found}
    wanted = {**known, **explicit}
    settings = {key: value for key, value in found.items() if key in wanted}
    change = change_of(shown(trained), shown(asked)) or change_of({"training": settings}, {"training": wanted})
    if change is None and recipe is not None and not found:
        return Change("training", "absent", "that of a recipe")
    return change


def _epochs(fold: Path) -> int | None:
    """Return the number of epochs of the training, from debug.json, which nnU-Net writes at its start; None if unknown."""
    debug = fold / "debug.json"
    text = debug.read_text(encoding="utf-8", errors="replace") if debug.exists() else ""
    match = re.search(r'"num_epochs": "?(\d+)', text)
    return int(match[1]) if match else None
