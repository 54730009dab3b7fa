"""An nnU-Net trainer that never leaves a fold's files in a bad state, and says why data could not be loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import distributed, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import DISK_ERRORS, remove_leftovers, unwritable
from nnunet_glims.images import check_whole
from nnunet_glims.locks import lock
from nnunet_glims.nnunet.checkpoints import FINAL, not_finite
from nnunet_glims.nnunet.training_log import TRAINING_LOCK
from nnunet_glims.trainers.checkpoint_files import (
    BEST,
    LATEST,
    PREVIOUS,
    Examined,
    examine,
    newest_usable,
    remove_cut_checkpoints,
    write_checkpoint,
)
from nnunet_glims.trainers.data_loading import DataLoading, RememberingCases, no_data_loading_processes


class NonFiniteTraining(ProcessingError):
    """The training cannot go on, because steps, weights or results are not finite."""


class FoldTrainer(nnUNetTrainer):
    """nnU-Net's trainer, whose files are safe: checkpoints, the lock of the fold, and errors that name files and cases."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own default
    ):
        with self.naming_files():
            super().__init__(plans, configuration, fold, dataset_json, device)
        self._data_loading = DataLoading(self.preprocessed_dataset_folder or "")
        self._own_checkpoints: set[str] = set()
        self._loaded_instead = ""

    @property
    def bare_network(self) -> nn.Module:
        """The network without the wrappers of distributed training and torch.compile."""
        # The optimizer is created before the network is wrapped.
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def agreed(self, value: bool) -> bool:
        """Return whether the value is true in any worker of a distributed training."""
        if not self.is_ddp:
            return value
        flag = torch.tensor(float(value), device=self.device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag.item())

    def check_weights(self, what: str) -> None:
        """Raise `NonFiniteTraining` with this text if the weights are not finite, in all workers of a distributed training."""
        bad = not_finite(self.bare_network.state_dict())
        if self.agreed(bool(bad)):
            raise NonFiniteTraining(f"{what} ({bad or 'in another worker'})")

    # ---- data

    def get_dataloaders(self):
        """Return nnU-Net's data loaders, whose processes end with the training and report their errors."""
        with no_data_loading_processes(), self._data_loading.last.named_in_errors():
            train, validation = super().get_dataloaders()
        processes = get_allowed_n_proc_DA()
        if processes == 0:
            return self._data_loading.without_processes(train), self._data_loading.without_processes(validation)
        # As many processes and batches as nnU-Net has.
        pin_memory = self.device.type == "cuda"
        fewer = max(1, processes // 2)
        train_seeds, validation_seeds = self.data_loading_seeds(0, processes), self.data_loading_seeds(1, fewer)
        return (
            self._data_loading.with_processes(train, processes, max(6, processes // 2), train_seeds, pin_memory),
            self._data_loading.with_processes(validation, fewer, max(3, processes // 4), validation_seeds, pin_memory),
        )

    def data_loading_seeds(self, loader: int, processes: int) -> list[int] | None:
        """Return the seeds of the processes of a data loader (0 for training, 1 for validation); None for random ones."""
        return None

    def get_tr_and_val_datasets(self):
        """Return nnU-Net's data sets, which note the case that is loaded, for errors.

        Raises:
            UsageError: the split of the fold has no case for training or for the validation.
        """
        train, validation = super().get_tr_and_val_datasets()
        for what, dataset in (("training", train), ("validation", validation)):
            if not len(dataset.identifiers):
                splits = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
                raise UsageError(
                    f"{splits}: fold {self.fold} has no case for {what}: add cases to it, or take another fold"
                )
        return RememberingCases(train, self._data_loading.last), RememberingCases(validation, self._data_loading.last)

    # ---- files

    @contextmanager
    def alone(self, what: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of the fold, so that no other process changes its files.

        Args:
            what: how the error message names the work.
            check: called when the lock is held, in the first worker of a distributed training.

        Raises:
            ProcessingError: another process holds the lock, or `check` raised this error. All workers raise it.
        """
        with ExitStack() as held:
            problem: list[str | None] = [None]
            if self.local_rank == 0:
                try:
                    held.enter_context(lock(Path(self.output_folder, TRAINING_LOCK), what))
                    check()
                except ProcessingError as error:
                    problem = [str(error)]
            if self.is_ddp:
                distributed.broadcast_object_list(problem)
            if problem[0] is not None:
                raise ProcessingError(problem[0])
            yield

    def prepare_folder(self) -> None:
        """Remove what killed trainings left in the folder of the fold, and check that a checkpoint fits on the disk."""
        folder = Path(self.output_folder)
        remove_cut_checkpoints(folder)
        remove_leftovers(Path(self.output_folder_base, "plans.json"))
        # Optimisers have at least one number for each weight.
        needed = 2 * sum(weight.numel() * weight.element_size() for weight in self.bare_network.parameters())
        disk = shutil.disk_usage(folder)
        if not self.disable_checkpointing and disk.total and disk.free < needed:
            raise unwritable(folder / LATEST, f"a checkpoint needs about {needed:,} bytes")

    @contextmanager
    def naming_files(self) -> Iterator[None]:
        """Let an error of a full disk name the file and the free space. nnU-Net's own errors do not always name the file."""
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise unwritable(Path(error.filename or self._file_written_last()), error.strerror or str(error)) from error

    def _file_written_last(self) -> Path:
        folders = (Path(self.output_folder_base), Path(self.output_folder), Path(self.output_folder, "validation"))
        files = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file()]
        return max(files, key=lambda path: path.stat().st_mtime, default=folders[0])

    def check_predictions(self) -> None:
        """Check that the predictions of the validation are whole: SimpleITK does not notice that a disk is full.

        Raises:
            ProcessingError: one is cut off. It and the summary, for which it was read as background, are removed.
        """
        folder = Path(self.output_folder, "validation")
        for file in sorted(folder.glob(f"*{self.dataset_json['file_ending']}")):
            try:
                check_whole(file)
            except ProcessingError as error:
                file.unlink()
                (folder / "summary.json").unlink(missing_ok=True)
                free = shutil.disk_usage(folder).free
                raise ProcessingError(
                    f"{error}. It and summary.json have been removed. The disk has {free:,} bytes ({free / 2**30:.1f} GiB) "
                    "free: make room, and validate again with --val"
                ) from error

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write a line to the training log and the terminal. A terminal that has been closed does not end the training."""
        # nnU-Net writes to the file first and handles errors of that itself.
        with suppress(OSError):
            super().print_to_log_file(*args, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    # ---- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint so that a crash leaves the old or the new one.

        Raises:
            NonFiniteTraining: the weights are not finite; nothing was written.
            ProcessingError: the file could not be written.
        """
        target = Path(filename)
        if not self.disable_checkpointing:
            self.check_weights(f"{target} was not written, because the weights are not finite")
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
        else:
            write_checkpoint(target, super().save_checkpoint, keep=LATEST in self._own_checkpoints)
        self._own_checkpoints |= {target.name} | (
            {PREVIOUS} if target.name == LATEST and LATEST in self._own_checkpoints else set()
        )

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint. If it is damaged or its weights are not finite, load the newest usable one in its folder.

        Raises:
            ProcessingError: no checkpoint can be used.
        """
        if isinstance(filename_or_checkpoint, str):
            filename_or_checkpoint = self._usable(Path(filename_or_checkpoint))
        super().load_checkpoint(filename_or_checkpoint)
        # A training that goes on owns all; one that goes back to its own checkpoint may lie beside those of an earlier one.
        self._own_checkpoints = self._own_checkpoints or {LATEST, PREVIOUS, BEST}

    def _usable(self, wanted: Path) -> str:
        examined = examine(wanted)
        if not examined.problem:
            return str(wanted)
        others = [wanted.parent / name for name in (LATEST, PREVIOUS, BEST, FINAL)]
        found = newest_usable(path for path in others if path != wanted)
        if found is None:
            raise ProcessingError(
                f"{wanted}: this checkpoint {examined.problem}, and no other one beside it can be used. Restore it from a "
                "backup, or train again without --c"
            )
        self._loaded_instead = f"{wanted} {examined.problem}"
        self.print_to_log_file(
            f"{self._loaded_instead}: going on from {found.path.name} instead, after {found.epoch} epochs"
        )
        return str(found.path)

    def newest_own_checkpoint(self) -> Examined | None:
        """Return the newest usable checkpoint of this training, not of an earlier one in the same folder; None without one."""
        names = [name for name in (LATEST, PREVIOUS, BEST) if name in self._own_checkpoints]
        return newest_usable(Path(self.output_folder, name) for name in names)
