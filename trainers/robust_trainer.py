"""An nnU-Net trainer that loses no work: to NaNs, to a full disk, to a time limit or to a killed machine."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, distributed
from torch._dynamo import OptimizedModule
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from nnunet_glims.architectures.base import SegmentationNetwork
from nnunet_glims.training.precision import Precision, autocast

EXIT_STOPPED = 75
"""Exit code after SIGTERM or SIGUSR1: stopped in good order, go on with --c (EX_TEMPFAIL of sysexits.h)."""

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows lacks one
SKIPS_IN_A_ROW = 20
"""Skipped steps after which a training counts as diverged. A gradient scaler finds its scale in fewer."""

LATEST, PREVIOUS, BEST = "checkpoint_latest.pth", "checkpoint_previous.pth", "checkpoint_best.pth"


class NonFiniteTraining(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


def is_intact(checkpoint: Path) -> bool:
    """Is the file a checkpoint that was written to its end, bytes as written?"""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU what torch reserved at most, else what the process held at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class RobustTrainer(nnUNetTrainer):
    """Adds to nnU-Net's trainer: precision with a way back to fp32, safe checkpoints, and stopping on signals.

    Attributes:
        gradient_clip: largest norm of the gradient, None for no limit.
        skipped_steps: how many steps were skipped because loss or gradient were not finite.
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
        self._stop_signal: int | None = None
        self._main_process = os.getpid()

    @property
    def bare_network(self) -> SegmentationNetwork:
        """The network without the wrappers of distributed training and torch.compile."""
        # The optimizer is made before the network is wrapped.
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def initialize(self) -> None:
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if self.device.type == "cpu" and threads.isdigit():
            torch.set_num_threads(int(threads))  # nnU-Net takes all cores, whoever else is at work on them
        super().initialize()
        self.set_precision(self.bare_network.precision)

    # ---- precision

    def set_precision(self, precision: Precision | None) -> None:
        """Run the network in this precision from now on. Only fp16 needs its gradients scaled."""
        self.bare_network.precision = precision
        with autocast(self.device.type, precision):
            scaled = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16
        self.grad_scaler = GradScaler("cuda") if scaled else None

    def train_step(self, batch: dict) -> dict:
        """One step, skipped where loss or gradient are not finite."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [entry.to(self.device, non_blocking=True) for entry in target]
        else:
            target = target.to(self.device, non_blocking=True)

        self.optimizer.zero_grad(set_to_none=True)
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
        """Is the step finite, and is training to stop? Asked of all workers, which must do the same."""
        bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(norm))
        flags = torch.stack([bad.float(), torch.full_like(norm, self._stop_signal is not None)])
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
        """Skipped steps do not count in the epoch's loss."""
        finite = [output for output in train_outputs if np.isfinite(output["loss"])]
        super().on_train_epoch_end(finite or train_outputs)

    def validation_step(self, batch: dict) -> dict:
        if self._stop_signal is not None and not self.is_ddp:
            self._stop()
        return super().validation_step(batch)

    def run_training(self) -> None:
        try:
            with self._stopping_on_signals(self._remember):
                super().run_training()
        except NonFiniteTraining:
            if self.bare_network.precision == "fp32":
                raise RuntimeError(
                    f"Training diverged in fp32: {SKIPS_IN_A_ROW} steps in a row were not finite. The checkpoints in "
                    f"{self.output_folder} are intact. Lower the learning rate (training: lr) or the gradient's norm "
                    "(training: gradient_clip), or look for broken images"
                ) from None
            self._go_back_in_fp32()
            self.run_training()
        except RuntimeError:
            # The data loader's workers may get the signal too; without them the next batch raises this.
            if self._stop_signal is None:
                raise
            self._stop()

    def _go_back_in_fp32(self) -> None:
        self._finish_dataloaders()
        self._skipped_in_a_row = 0
        checkpoint = next(filter(is_intact, self._checkpoints(LATEST, PREVIOUS, BEST)), None)
        if checkpoint is not None:
            self.load_checkpoint(str(checkpoint))
        origin = "the present weights, no checkpoint being there" if checkpoint is None else checkpoint.name
        self.print_to_log_file(
            f"{SKIPS_IN_A_ROW} steps in a row were not finite. Going back to {origin} (epoch {self.current_epoch}), "
            "and on in fp32"
        )
        self.set_precision("fp32")
        self._record_precision("fp32")

    def _record_precision(self, precision: Precision) -> None:
        """Write the precision into the plans that checkpoints and the model folder hold."""
        for plans in (self.plans_manager.plans, self.my_init_kwargs["plans"]):
            plans["configurations"][self.configuration_name]["training"]["precision"] = precision
        if self.local_rank == 0:
            save_json(self.plans_manager.plans, os.path.join(self.output_folder_base, "plans.json"), sort_keys=False)

    # ---- checkpoints

    def _checkpoints(self, *names: str) -> list[Path]:
        return [Path(self.output_folder, name) for name in names]

    def save_checkpoint(self, filename: str) -> None:
        """Write under a temporary name, then rename. The latest but one is kept as checkpoint_previous.pth."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        target = Path(filename)
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            super().save_checkpoint(str(temporary))
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if target.name == LATEST and target.exists():
                previous = target.with_name(PREVIOUS)
                previous.unlink(missing_ok=True)
                try:
                    os.link(target, previous)
                except OSError:  # a file system without hard links
                    shutil.copy2(target, previous)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint; where it is damaged, the newest intact one beside it.

        Raises:
            RuntimeError: none is intact.
        """
        if isinstance(filename_or_checkpoint, str):
            wanted = Path(filename_or_checkpoint)
            candidates = [wanted, *(wanted.with_name(name) for name in (LATEST, PREVIOUS, BEST))]
            chosen = next(filter(is_intact, candidates), None)
            if chosen is None:
                raise RuntimeError(
                    f"{wanted}: this checkpoint is damaged and no other one beside it is intact. "
                    "Restore it from a backup, or train again without --c"
                )
            if chosen != wanted:
                self.print_to_log_file(f"{wanted} is damaged: going on from {chosen.name} instead")
            filename_or_checkpoint = str(chosen)
        super().load_checkpoint(filename_or_checkpoint)
        stored = self.my_init_kwargs["plans"]["configurations"][self.configuration_name].get("training", {})
        if stored.get("precision") == "fp32":
            self.set_precision("fp32")
            self._record_precision("fp32")

    def on_train_end(self) -> None:
        super().on_train_end()
        self.print_to_log_file(f"Peak memory: {_peak_memory(self.device) / 2**30:.2f} GiB")
        if self.local_rank == 0:
            for leftover in self._checkpoints(PREVIOUS):
                leftover.unlink(missing_ok=True)

    # ---- signals

    @contextmanager
    def _stopping_on_signals(self, handler: Any) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._main_process:  # a data loader's worker, forked with this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._stop_signal = number

    @staticmethod
    def _leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_STOPPED)

    def _stop(self) -> None:
        """Save so that --c repeats the running epoch, and leave."""
        for values in self.logger.local_logger.my_fantastic_logging.values():
            del values[self.current_epoch :]
        self.current_epoch -= 1  # nnU-Net stores the epoch after the present one
        self.save_checkpoint(os.path.join(self.output_folder, LATEST))
        self.current_epoch += 1
        if self.is_ddp:
            distributed.barrier()
        name = signal.Signals(self._stop_signal).name if self._stop_signal is not None else "a signal to another worker"
        self.print_to_log_file(
            f"Stopped by {name} in epoch {self.current_epoch}; the same command with --c goes on (exit code {EXIT_STOPPED})"
        )
        self._finish_dataloaders()
        raise SystemExit(EXIT_STOPPED)

    def _finish_dataloaders(self) -> None:
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        if self._stop_signal is not None:
            raise SystemExit(EXIT_STOPPED)
        with self._stopping_on_signals(self._leave):
            super().perform_actual_validation(save_probabilities)
