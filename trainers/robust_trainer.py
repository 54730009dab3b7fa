"""An nnU-Net trainer that survives NaNs, full disks, time limits and machine failures without losing work."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, distributed, nn
from torch._dynamo import OptimizedModule
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from nnunet_glims.trainers.checkpoint_files import LATEST, PREVIOUS, newest_intact, write_checkpoint
from nnunet_glims.trainers.stop_signals import EXIT_STOPPED, StopSignals, workers_died
from nnunet_glims.training.precision import PrecisionSetting, autocast, chosen, explain_choice, resolve

SKIPS_IN_A_ROW = 20
"""Number of skipped steps in a row after which a training counts as diverged. A gradient scaler needs fewer steps."""


class NonFiniteTraining(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class RobustTrainer(nnUNetTrainer):
    """nnU-Net's trainer, with any network, and three additions.

    - A step whose loss or gradient is not finite is skipped. After `SKIPS_IN_A_ROW` such steps in a row the training
      returns to its last checkpoint and continues in fp32.
    - Checkpoints are written so that one is always intact, and damaged checkpoints are not loaded.
    - On SIGTERM or SIGUSR1 the training saves a checkpoint and ends with exit code `EXIT_STOPPED`; `--c` repeats the
      interrupted epoch.

    Used as it is, `class nnUNetTrainerSafe(RobustTrainer)` trains nnU-Net's own network, in fp16 on GPUs as nnU-Net does.
    A subclass may choose the precision (`planned_precision`), pass it to its network (`set_precision`), and record the
    change to fp32 in further places than the checkpoint (`record_fp32`, `recorded_fp32`).

    Attributes:
        gradient_clip: largest norm of the gradient; None for no limit.
        precision: setting of the precision in which the network computes.
        skipped_steps: number of steps that were skipped.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own default
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.gradient_clip: float | None = 12.0
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._stop_signals = StopSignals()

    @property
    def bare_network(self) -> nn.Module:
        """The network without the wrappers of distributed training and torch.compile."""
        # The optimizer is created before the network is wrapped.
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def initialize(self) -> None:
        """Build network, optimiser and loss as nnU-Net does, with the number of threads in OMP_NUM_THREADS."""
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if self.device.type == "cpu" and threads.isdigit():
            torch.set_num_threads(int(threads))  # nnU-Net uses all cores, even if other processes use them
        super().initialize()
        self.set_precision(chosen(self.planned_precision()))

    # ---- precision

    def planned_precision(self) -> PrecisionSetting:
        """Return the precision setting of the training, which NNUNET_GLIMS_PRECISION overrides."""
        return "fp16" if self.device.type == "cuda" else "fp32"

    def set_precision(self, setting: PrecisionSetting) -> None:
        """Compute in this precision from now on. Gradients are scaled only for fp16 on GPUs."""
        self.precision = setting
        scaled = self.device.type == "cuda" and resolve(setting, "cuda") == "fp16"
        self.grad_scaler = GradScaler("cuda") if scaled else None
        self.print_to_log_file(f"Precision: {explain_choice(setting, self.device.type)}")

    def record_fp32(self) -> None:
        """Record in later checkpoints that the training has changed to fp32."""
        self.my_init_kwargs["precision"] = "fp32"

    def recorded_fp32(self) -> bool:
        """Return whether the training of the loaded checkpoint had changed to fp32."""
        return self.my_init_kwargs.get("precision") == "fp32"

    # ---- steps

    def train_step(self, batch: dict) -> dict:
        """Train one step; it is skipped if the loss or the gradient is not finite."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [entry.to(self.device, non_blocking=True) for entry in target]
        else:
            target = target.to(self.device, non_blocking=True)

        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device.type, self.precision):
            loss = self.loss(self.network(data), target)
        if self.grad_scaler is None:
            loss.backward()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
        limit = float("inf") if self.gradient_clip is None else self.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)

        finite, stop = self._agree(loss, norm)
        if finite and self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
        elif finite:
            self.optimizer.step()
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        if stop:
            self._stop()
        self._count_skips(finite)
        return {"loss": loss.detach().cpu().numpy()}

    def _agree(self, loss: Tensor, norm: Tensor) -> tuple[bool, bool]:
        """Return whether the step is finite and whether to stop, the same for all workers of a distributed training."""
        bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(norm))
        flags = torch.stack([bad.float(), torch.full_like(norm, self._stop_signals.received is not None)])
        if self.is_ddp:
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        bad_anywhere, stop = flags.tolist()
        return not bad_anywhere, bool(stop)

    def _count_skips(self, finite: bool) -> None:
        if finite:
            self._skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        self.print_to_log_file(
            f"Loss or gradient not finite: step skipped ({self._skipped_in_a_row} in a row, {self.skipped_steps} in all)"
        )
        if self._skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise NonFiniteTraining

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the epoch's loss, without skipped steps."""
        finite = [output for output in train_outputs if np.isfinite(output["loss"])]
        super().on_train_epoch_end(finite or train_outputs)

    def validation_step(self, batch: dict) -> dict:
        """Compute one step of the validation after an epoch. A signal stops the training here too."""
        if self._stop_signals.received is not None and not self.is_ddp:
            self._stop()
        return super().validation_step(batch)

    def run_training(self) -> None:
        """Train to the last epoch.

        Raises:
            SystemExit: with `EXIT_STOPPED` after a signal, when the checkpoint is written.
            ProcessingError: a checkpoint could not be written.
            RuntimeError: the training diverged in fp32.
        """
        try:
            with self._stop_signals.remembered():
                super().run_training()
        except NonFiniteTraining:
            if resolve(self.precision, self.device.type) == "fp32":
                raise RuntimeError(
                    f"Training diverged in fp32: {SKIPS_IN_A_ROW} steps in a row were not finite. The checkpoints in "
                    f"{self.output_folder} are intact. Lower the learning rate (training: lr) or the gradient's norm "
                    "(training: gradient_clip), or look for broken images"
                ) from None
            self._go_back_in_fp32()
            self.run_training()
        except RuntimeError as error:
            # The signal may have ended the data loading processes, so that the next batch raises an error.
            if self._stop_signals.received is None or not workers_died(error):
                raise
            self._stop()

    def _go_back_in_fp32(self) -> None:
        self._finish_dataloaders()
        self._skipped_in_a_row = 0
        checkpoint = newest_intact(Path(self.output_folder))
        if checkpoint is not None:
            self.load_checkpoint(str(checkpoint))
        origin = "the present weights, because there is no checkpoint" if checkpoint is None else checkpoint.name
        self.print_to_log_file(
            f"{SKIPS_IN_A_ROW} steps in a row were not finite. Going back to {origin} (epoch {self.current_epoch}), "
            "and on in fp32"
        )
        self.set_precision("fp32")
        self.record_fp32()

    def on_train_end(self) -> None:
        """Write the final checkpoint and log the peak memory."""
        super().on_train_end()
        self.print_to_log_file(f"Peak memory: {peak_memory(self.device) / 2**30:.2f} GiB")
        if self.local_rank == 0:
            Path(self.output_folder, PREVIOUS).unlink(missing_ok=True)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the validation cases. A signal ends this at once; `--c` or `--val` repeats it."""
        with self._stop_signals.leaving():
            super().perform_actual_validation(save_probabilities)

    # ---- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint so that a crash leaves the old or the new one; errors are those of `write_checkpoint`."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
        else:
            write_checkpoint(Path(filename), super().save_checkpoint)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint, or if it is damaged, the newest intact one in its folder.

        Raises:
            RuntimeError: no checkpoint is intact.
        """
        if isinstance(filename_or_checkpoint, str):
            wanted = Path(filename_or_checkpoint)
            found = newest_intact(wanted.parent, wanted)
            if found is None:
                raise RuntimeError(
                    f"{wanted}: this checkpoint is damaged and no other one beside it is intact. "
                    "Restore it from a backup, or train again without --c"
                )
            if found != wanted:
                self.print_to_log_file(f"{wanted} is damaged: going on from {found.name} instead")
            filename_or_checkpoint = str(found)
        super().load_checkpoint(filename_or_checkpoint)
        if self.recorded_fp32():
            self.set_precision("fp32")
            self.record_fp32()

    def _save_to_repeat_epoch(self) -> None:
        """Write the latest checkpoint with the number of the previous epoch, so that the running one is repeated."""
        earlier = copy.copy(self)
        earlier.current_epoch = self.current_epoch - 1  # nnU-Net stores this number plus 1
        earlier.logger = _LogOfEarlierEpochs(self.logger.get_checkpoint(), self.current_epoch)
        earlier.save_checkpoint(os.path.join(self.output_folder, LATEST))

    # ---- stopping

    def _stop(self) -> None:
        """Save, so that --c repeats the running epoch, and end the process."""
        self._save_to_repeat_epoch()
        if self.is_ddp:
            distributed.barrier()
        self.print_to_log_file(
            f"Stopped by {self._stop_signals.name} in epoch {self.current_epoch}; the same command with --c goes on "
            f"(exit code {EXIT_STOPPED})"
        )
        self._finish_dataloaders()
        raise SystemExit(EXIT_STOPPED)

    def _finish_dataloaders(self) -> None:
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()


class _LogOfEarlierEpochs:
    """nnU-Net's log as checkpoints store it, without an epoch and those after it."""

    def __init__(self, values: Mapping[str, list[Any]], epoch: int):
        self._values, self._epoch = values, epoch

    def get_checkpoint(self) -> dict[str, list[Any]]:
        return {name: entries[: self._epoch] for name, entries in self._values.items()}


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: on a GPU that reserved by torch, else that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
