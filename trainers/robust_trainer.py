"""An nnU-Net trainer that survives NaNs, full disks, time limits and machine failures without losing work."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.amp import GradScaler

from nnunet_glims.errors import ProcessingError
from nnunet_glims.nnunet.checkpoints import not_finite
from nnunet_glims.trainers.checkpoint_files import LATEST, PREVIOUS
from nnunet_glims.trainers.data_loading import workers_died
from nnunet_glims.trainers.fold_trainer import FoldTrainer, NonFiniteTraining
from nnunet_glims.trainers.stop_signals import EXIT_STOPPED, StopSignals
from nnunet_glims.training.precision import PrecisionSetting, autocast, chosen, explain_choice, resolve

SKIPS_IN_A_ROW = 20
"""Number of skipped steps in a row after which a training counts as diverged. A gradient scaler needs fewer steps."""


class RobustTrainer(FoldTrainer):
    """nnU-Net's trainer, with any network, and these additions.

    - A step whose loss or gradient is not finite is skipped. After `SKIPS_IN_A_ROW` such steps in a row, an epoch without
      another step, or an epoch whose weights or validation losses are not finite, the training returns to its last checkpoint
      and continues in fp32. In fp32 it ends with an error.
    - Checkpoints are written so that one is always intact. Weights that are not finite are not saved, and neither they nor
      damaged checkpoints are loaded.
    - On SIGTERM, SIGUSR1, SIGHUP or Ctrl-C the training saves a checkpoint and ends with exit code `EXIT_STOPPED`; `--c`
      repeats the interrupted epoch.
    - Only one process at a time trains a fold. Another one is refused, with a message that says who trains it.
    - Data loading processes end with the training, and their errors name the case.

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
        self._steps_in_epoch = 0
        self._broken_cases: dict[str, None] = {}
        self._images_are_broken = False
        self._stop_signals = StopSignals()

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

        finite, stop, broken = self._agree(loss, norm, data)
        if finite and self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
        elif finite:
            self.optimizer.step()
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        if stop:
            self._stop()
        self._count_step(finite, self._cases_with_broken_images(batch) if broken else None)
        # All workers of a distributed training leave the same steps out of the mean.
        return {"loss": loss.detach().cpu().numpy() if finite else np.full((), np.nan, np.float32)}

    def _agree(self, loss: Tensor, norm: Tensor, data: Tensor) -> tuple[bool, bool, bool]:
        """Return whether the step is finite, whether to stop, and whether the images are not finite.

        The answers are the same for all workers of a distributed training.
        """
        bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(norm))
        broken = ~torch.isfinite(data).all()
        received = torch.full_like(norm, self._stop_signals.received is not None)
        flags = torch.stack([bad.float(), received.float(), broken.float()])
        if self.is_ddp:
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        bad_anywhere, stop, broken_anywhere = flags.tolist()
        return not bad_anywhere, bool(stop), bool(broken_anywhere)

    @staticmethod
    def _cases_with_broken_images(batch: Mapping[str, Any]) -> list[str]:
        finite = torch.isfinite(batch["data"]).flatten(1).all(1).tolist()
        return [str(case) for case, good in zip(batch.get("keys", ()), finite, strict=False) if not good]

    def _count_step(self, finite: bool, broken_cases: Sequence[str] | None = None) -> None:
        """Count a step; `broken_cases` names those whose images are not finite, None if all images are."""
        if finite:
            self._skipped_in_a_row = 0
            self._steps_in_epoch += 1
            self._images_are_broken = False
            return
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        self._images_are_broken = broken_cases is not None and (self._images_are_broken or self._skipped_in_a_row == 1)
        self._broken_cases.update(dict.fromkeys(broken_cases or ()))
        what = f"Images of {', '.join(broken_cases)}" if broken_cases else "Loss or gradient"
        self.print_to_log_file(
            f"{what} not finite: step skipped ({self._skipped_in_a_row} in a row, {self.skipped_steps} in all)"
        )
        if self._skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise NonFiniteTraining(f"{SKIPS_IN_A_ROW} steps in a row were not finite")

    # ---- epochs

    def on_train_epoch_start(self) -> None:
        """Start an epoch, and count its steps."""
        super().on_train_epoch_start()
        self._steps_in_epoch = 0

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the epoch's loss, without skipped steps.

        Raises:
            NonFiniteTraining: no step was taken, or the weights are not finite.
        """
        if not self._steps_in_epoch:
            raise NonFiniteTraining(f"no step of epoch {self.current_epoch} was finite")
        self.check_weights(f"after epoch {self.current_epoch} the weights are not finite")
        super().on_train_epoch_end([output for output in train_outputs if np.isfinite(output["loss"])])

    def validation_step(self, batch: dict) -> dict:
        """Compute one step of the validation after an epoch. A signal stops the training here too."""
        if self._stop_signals.received is not None and not self.is_ddp:
            self._stop()
        return super().validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the validation of an epoch; raise `NonFiniteTraining` if none of its losses is finite."""
        if not self.agreed(any(np.isfinite(output["loss"]) for output in val_outputs)):
            raise NonFiniteTraining(f"no validation loss of epoch {self.current_epoch} was finite")
        super().on_validation_epoch_end(val_outputs)

    # ---- the training

    def run_training(self) -> None:
        """Train to the last epoch.

        Raises:
            SystemExit: with `EXIT_STOPPED` after a signal, when the checkpoint is written.
            ProcessingError: the training diverged in fp32, another process trains the fold, a file could not be written, or
                data could not be loaded.
        """
        try:
            if not self.was_initialized:
                self.initialize()
            if bad := not_finite(self.bare_network.state_dict()):
                raise ProcessingError(
                    f"the weights are not finite before the first step ({bad}): start from other weights"
                )
            with self.alone(f"training {self.output_folder}", self.prepare_folder), self._stop_signals.remembered():
                self._loaded_instead = ""
                self._train()
        except BaseException:
            self._data_loading.finish()
            raise

    def _train(self) -> None:
        while True:
            try:
                with self.naming_files():
                    super().run_training()
                return
            except NonFiniteTraining as found:
                self._go_back_in_fp32(str(found))
            except RuntimeError as error:
                if not workers_died(error):
                    raise
                # The signal may have ended the data loading processes, so that the next batch raises an error.
                if self._stop_signals.received is None:
                    raise self._data_loading.failure() from None
                self._stop()

    def _go_back_in_fp32(self, reason: str) -> None:
        """Go back to the newest checkpoint of this training and on in fp32; raise `ProcessingError` where that is no help."""
        self._data_loading.finish()
        if self._images_are_broken:
            cases = f" ({', '.join(self._broken_cases)})" if self._broken_cases else ""
            raise ProcessingError(
                f"The images have values that are not finite{cases}: {reason}. Repair these images, and preprocess the data "
                "set again"
            ) from None
        found = self.newest_own_checkpoint()
        if resolve(self.precision, self.device.type) == "fp32":
            raise self._diverged(f"in fp32: {reason}") from None
        if found is None and (bad := not_finite(self.bare_network.state_dict())):
            raise self._diverged(f"before its first checkpoint: {reason}; {bad}") from None
        self._skipped_in_a_row = 0
        if found is not None:
            self.load_checkpoint(str(found.path))
        origin = "the present weights, because there is no checkpoint" if found is None else found.path.name
        self.print_to_log_file(f"{reason}. Going back to {origin} (epoch {self.current_epoch}), and on in fp32")
        self.set_precision("fp32")
        self.record_fp32()

    def _diverged(self, how: str) -> ProcessingError:
        return ProcessingError(
            f"Training diverged {how}. The checkpoints in {self.output_folder} are intact. Lower the learning rate (training: "
            "lr) or the gradient's norm (training: gradient_clip), or look for broken images"
        )

    def on_train_end(self) -> None:
        """Write the final checkpoint and log the peak memory."""
        super().on_train_end()
        self.print_to_log_file(f"Peak memory: {peak_memory(self.device) / 2**30:.2f} GiB")
        if self.local_rank == 0:
            Path(self.output_folder, PREVIOUS).unlink(missing_ok=True)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the validation cases. A signal ends this at once; `--c` or `--val` repeats it.

        Raises:
            ProcessingError: the checkpoint to validate cannot be used, another process works on the fold, or a file could
                not be written.
        """
        if self._loaded_instead:
            raise ProcessingError(f"{self._loaded_instead}: nothing was validated. Go on with the training (--c) first")
        what = f"validating {self.output_folder}"
        with self.alone(what), self._stop_signals.leaving(), self.naming_files():
            super().perform_actual_validation(save_probabilities)
            if self.local_rank == 0:
                self.check_predictions()

    # ---- checkpoints

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint, and stay in fp32 if its training had changed to that; errors are those of `FoldTrainer`."""
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
        raise SystemExit(EXIT_STOPPED)


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
