import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_glims.trainers import robust_trainer
from nnunet_glims.trainers.robust_trainer import EXIT_STOPPED, SKIPS_IN_A_ROW, is_intact
from tests.preprocessed import DATASET, make_plans


class Poison(nn.Module):
    """Multiplies the loss by NaN at chosen calls."""

    def __init__(self, loss, calls):
        super().__init__()
        self.loss, self.calls, self.count = loss, set(calls), 0

    def forward(self, *arguments):
        value = self.loss(*arguments)
        self.count += torch.is_grad_enabled()
        return value * float("nan") if torch.is_grad_enabled() and self.count in self.calls else value


def poison(trainer, calls):
    trainer.initialize()
    trainer.loss = Poison(trainer.loss, calls)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.bare_network.state_dict().items()}


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(make_trainer):
    trainer = make_trainer(iterations_per_epoch=3)
    poison(trainer, calls=[1])
    trainer.on_train_start()
    before = weights(trainer)
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())
    assert trainer.skipped_steps == 1
    trainer.train_step(batch)
    assert not all(torch.equal(before[name], value) for name, value in weights(trainer).items())
    assert "step skipped (1 in a row, 1 in all)" in Path(trainer.log_file).read_text()


def test_skipped_steps_do_not_count_in_the_epochs_loss(make_trainer):
    trainer = make_trainer(epochs=1, iterations_per_epoch=3)
    poison(trainer, calls=[2])
    trainer.run_training()
    assert torch.isfinite(torch.tensor(trainer.logger.get_value("train_losses", -1)))


def test_a_diverged_training_goes_back_to_the_last_checkpoint_in_fp32_and_ends(make_trainer):
    trainer = make_trainer(precision="bf16", epochs=3, iterations_per_epoch=SKIPS_IN_A_ROW, checkpoint_interval=1)
    # Epoch 0 is fine; in epoch 1 every step fails until the trainer has gone back.
    poison(trainer, calls=range(SKIPS_IN_A_ROW + 1, 2 * SKIPS_IN_A_ROW + 1))
    trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert "Going back to checkpoint_latest.pth (epoch 1), and on in fp32" in log
    assert trainer.bare_network.precision == "fp32"
    assert trainer.current_epoch == 3
    plans = json.loads(Path(trainer.output_folder_base, "plans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["training"]["precision"] == "fp32"
    final = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
    assert final["current_epoch"] == 3
    assert len(final["logging"]["train_losses"]) == 3


def test_a_training_that_continues_stays_in_fp32(make_trainer):
    trainer = make_trainer(precision="bf16", epochs=2)
    trainer.initialize()
    trainer.set_precision("fp32")
    trainer._record_precision("fp32")
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
    again = make_trainer(precision="bf16", epochs=2)
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
    assert again.bare_network.precision == "fp32"


def test_divergence_in_fp32_ends_with_a_clear_error_and_intact_checkpoints(make_trainer):
    trainer = make_trainer(precision="fp32", epochs=3, iterations_per_epoch=SKIPS_IN_A_ROW, checkpoint_interval=1)
    poison(trainer, calls=range(SKIPS_IN_A_ROW + 1, 10_000))
    with pytest.raises(RuntimeError, match=r"diverged in fp32.*are intact.*lr"):
        trainer.run_training()
    assert is_intact(Path(trainer.output_folder, "checkpoint_latest.pth"))


def test_without_a_checkpoint_it_goes_on_from_weights_no_bad_step_has_touched(make_trainer):
    trainer = make_trainer(precision="bf16", epochs=1, iterations_per_epoch=SKIPS_IN_A_ROW)
    poison(trainer, calls=range(1, SKIPS_IN_A_ROW + 1))
    trainer.run_training()
    assert "Going back to the present weights" in Path(trainer.log_file).read_text()
    assert trainer.current_epoch == 1


def test_a_full_disk_leaves_the_old_checkpoint(make_trainer, monkeypatch):
    trainer = make_trainer()
    trainer.initialize()
    latest = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(latest))
    before = latest.read_bytes()

    def full(checkpoint, filename):
        Path(filename).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(str(latest))
    assert latest.read_bytes() == before
    assert sorted(path.name for path in latest.parent.glob("checkpoint*")) == ["checkpoint_latest.pth"]


@pytest.mark.parametrize("damage", ["truncated", "flipped byte", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(make_trainer, damage):
    trainer = make_trainer()
    trainer.initialize()
    latest = Path(trainer.output_folder, "checkpoint_latest.pth")
    for epoch in (4, 5):
        trainer.current_epoch = epoch
        trainer.save_checkpoint(str(latest))
    content = bytearray(latest.read_bytes())
    if damage == "flipped byte":
        content[len(content) // 2] ^= 255
    latest.write_bytes({"truncated": content[:-5000], "flipped byte": content, "empty": b""}[damage])
    again = make_trainer()
    again.load_checkpoint(str(latest))
    assert again.current_epoch == 5  # of the checkpoint written after epoch 4
    assert "going on from checkpoint_previous.pth instead" in Path(again.log_file).read_text()


def test_when_no_checkpoint_is_intact_the_error_says_what_to_do(make_trainer):
    trainer = make_trainer()
    latest = Path(trainer.output_folder, "checkpoint_latest.pth")
    latest.write_bytes(b"no checkpoint")
    with pytest.raises(RuntimeError, match=r"checkpoint_latest.pth: this checkpoint is damaged.*without --c"):
        trainer.load_checkpoint(str(latest))


def test_a_finished_training_leaves_only_the_checkpoints_nnunet_leaves(make_trainer):
    trainer = make_trainer(epochs=3, checkpoint_interval=1)
    trainer.run_training()
    names = sorted(path.name for path in Path(trainer.output_folder).glob("checkpoint*"))
    assert names == ["checkpoint_best.pth", "checkpoint_final.pth"]


@pytest.mark.parametrize("number", robust_trainer.STOP_SIGNALS)
def test_a_signal_stops_after_the_step_and_a_continued_run_repeats_the_epoch(make_trainer, monkeypatch, number):
    trainer = make_trainer(epochs=3, iterations_per_epoch=2)
    trainer.initialize()
    take_step, steps = trainer.train_step, []

    def step_and_signal(batch):
        steps.append(1)
        if len(steps) == 3:  # first step of epoch 1
            os.kill(os.getpid(), number)
        return take_step(batch)

    monkeypatch.setattr(trainer, "train_step", step_and_signal)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == EXIT_STOPPED
    assert signal.getsignal(number) == before
    assert len(steps) == 3

    again = make_trainer(epochs=3, iterations_per_epoch=2)
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
    assert again.current_epoch == 1
    again.run_training()
    final = torch.load(Path(again.output_folder, "checkpoint_final.pth"), weights_only=False)
    assert {name: len(values) for name, values in final["logging"].items()} == dict.fromkeys(final["logging"], 3)


def test_on_cpus_it_keeps_to_the_threads_it_is_given(make_trainer, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    try:
        make_trainer().initialize()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def train_command(*arguments):
    program = Path(sysconfig.get_path("scripts"), "nnUNetv2_train")
    return [str(program), DATASET, "3d_fullres", "0", "-tr", "nnUNetTrainerLATUPNet", "-device", "cpu", *arguments]


@pytest.mark.slow
def test_the_real_command_stops_on_sigterm_with_workers_and_goes_on(nnunet_folders):
    plans = make_plans("LATUPNet", epochs=500, iterations_per_epoch=4, checkpoint_interval=1000)
    plans_file = nnunet_folders / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans_file.write_text(json.dumps(plans))
    environment = {**os.environ, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    environment.pop("nnUNet_extTrainer", None)
    log = nnunet_folders / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            train_command(), env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while "Epoch 2" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the workers get it too
        assert process.wait(timeout=60) == EXIT_STOPPED, log.read_text()[-3000:]
    folder = nnunet_folders / "results" / DATASET / "nnUNetTrainerLATUPNet__nnUNetPlans__3d_fullres/fold_0"
    stopped_at = torch.load(folder / "checkpoint_latest.pth", weights_only=False)["current_epoch"]
    assert stopped_at >= 2

    plans["configurations"]["3d_fullres"]["training"]["epochs"] = stopped_at + 1
    plans_file.write_text(json.dumps(plans))
    # The ground truth of these cases is not there, so the validation behind the training fails; the training does not.
    shutil.rmtree(nnunet_folders / "preprocessed" / DATASET / "gt_segmentations")
    subprocess.run(train_command("--c"), env=environment, capture_output=True, timeout=200, check=False)
    final = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert final["current_epoch"] == stopped_at + 1
