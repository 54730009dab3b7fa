import json
import os
import resource
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_glims.errors import ProcessingError
from nnunet_glims.nnunet.checkpoints import FINAL, is_intact
from nnunet_glims.trainers import checkpoint_files, robust_trainer
from nnunet_glims.trainers.checkpoint_files import BEST, LATEST, PREVIOUS
from nnunet_glims.trainers.data_loading import workers_died
from nnunet_glims.trainers.robust_trainer import NonFiniteTraining, RobustTrainer
from nnunet_glims.trainers.stop_signals import EXIT_STOPPED, STOP_SIGNALS
from tests.export import PLAIN
from tests.preprocessed import DATASET, make_plans
from tests.waiting import wait_until

SKIPS = 3
"""Bad steps in a row for which these tests call a training diverged, unless the number itself is tested."""


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


def checkpoint(trainer, name):
    return Path(trainer.output_folder, name)


def load(path):
    return torch.load(path, weights_only=False)


def log_of(trainer):
    return Path(trainer.log_file).read_text()


def at_step(monkeypatch, trainer, number, action):
    """Do something before a training step, counted from 1. Returns the list of steps taken."""
    take_step, steps = trainer.train_step, []

    def step(batch):
        steps.append(1)
        if len(steps) == number:
            action()
        return take_step(batch)

    monkeypatch.setattr(trainer, "train_step", step)
    return steps


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture
def full_disk():
    """Files cannot grow beyond 20 kB until the fixture's function is called, so torch itself fails to write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def make_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1])), make_room
    make_room()


@pytest.fixture
def few_skips(monkeypatch):
    monkeypatch.setattr(robust_trainer, "SKIPS_IN_A_ROW", SKIPS)


class nnUNetTrainerSafe(RobustTrainer):
    """nnU-Net's own network and settings, with our safety and a short training."""

    def __init__(self, plans, configuration, fold, dataset_json, device):  # nnU-Net reads these names
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, SKIPS, 1
        self.save_every = 1


def unet_plans():
    """Plans with nnU-Net's own network, in which nothing is ours."""
    plans = make_plans(patch_size=(16, 16, 16))
    configuration = plans["configurations"]["3d_fullres"]
    del configuration["training"]
    configuration["architecture"] = PLAIN
    plans["continue_training"] = False
    return plans


@pytest.fixture
def make_unet(make_trainer):
    return lambda: make_trainer(plans=unet_plans(), trainer=nnUNetTrainerSafe)


# ---- steps that are not finite


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
    assert "step skipped (1 in a row, 1 in all)" in log_of(trainer)


def test_skipped_steps_do_not_count_in_the_epochs_loss(make_trainer):
    trainer = make_trainer(epochs=1, iterations_per_epoch=3)
    poison(trainer, calls=[2])
    trainer.run_training()
    assert torch.isfinite(torch.tensor(trainer.logger.get_value("train_losses", -1)))


def test_twenty_skipped_steps_in_a_row_are_a_diverged_training(make_trainer):
    trainer = make_trainer()
    for finite in [*[False] * 19, True, *[False] * 19]:
        trainer._count_step(finite)
    with pytest.raises(NonFiniteTraining):
        trainer._count_step(False)


def test_a_diverged_training_goes_back_to_the_last_checkpoint_in_fp32_and_ends(make_trainer, few_skips):
    trainer = make_trainer(precision="bf16", epochs=3, iterations_per_epoch=SKIPS, checkpoint_interval=1)
    # Epoch 0 is fine; in epoch 1 every step fails until the trainer has gone back.
    poison(trainer, calls=range(SKIPS + 1, 2 * SKIPS + 1))
    trainer.run_training()
    assert "Going back to checkpoint_latest.pth (epoch 1), and on in fp32" in log_of(trainer)
    assert trainer.bare_network.precision == "fp32"
    assert trainer.current_epoch == 3
    plans = json.loads(Path(trainer.output_folder_base, "plans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["training"]["precision"] == "fp32"
    final = load(checkpoint(trainer, FINAL))
    assert final["current_epoch"] == 3
    assert len(final["logging"]["train_losses"]) == 3


@pytest.mark.parametrize("variable", [None, "bf16"])
def test_a_training_that_continues_stays_in_fp32(make_trainer, monkeypatch, variable):
    if variable is not None:
        monkeypatch.setenv("NNUNET_GLIMS_PRECISION", variable)
    trainer = make_trainer(precision="bf16")
    trainer.initialize()
    trainer.set_precision("fp32")
    trainer.record_fp32()
    trainer.save_checkpoint(str(checkpoint(trainer, LATEST)))
    for _ in range(2):  # also when it is continued once more
        trainer = make_trainer(precision="bf16")
        trainer.load_checkpoint(str(checkpoint(trainer, LATEST)))
        assert trainer.bare_network.precision == "fp32"
        trainer.save_checkpoint(str(checkpoint(trainer, LATEST)))


def test_a_training_that_was_planned_in_fp32_continues_in_what_the_variable_says(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_GLIMS_PRECISION", "bf16")
    trainer = make_trainer(precision="fp32")
    trainer.initialize()
    trainer.save_checkpoint(str(checkpoint(trainer, LATEST)))
    again = make_trainer(precision="fp32")
    again.load_checkpoint(str(checkpoint(trainer, LATEST)))
    assert again.bare_network.precision == "bf16"


def test_divergence_in_fp32_ends_with_a_clear_error_and_intact_checkpoints(make_trainer, few_skips):
    trainer = make_trainer(precision="fp32", epochs=3, iterations_per_epoch=SKIPS, checkpoint_interval=1)
    poison(trainer, calls=range(SKIPS + 1, 10_000))
    with pytest.raises(RuntimeError, match=r"diverged in fp32.*are intact.*lr"):
        trainer.run_training()
    assert is_intact(checkpoint(trainer, LATEST))


def test_without_a_checkpoint_it_goes_on_from_weights_no_bad_step_has_touched(make_trainer, few_skips):
    trainer = make_trainer(precision="bf16", epochs=1, iterations_per_epoch=SKIPS)
    poison(trainer, calls=range(1, SKIPS + 1))
    trainer.run_training()
    assert "Going back to the present weights" in log_of(trainer)
    assert trainer.current_epoch == 1


# ---- checkpoints


def test_the_names_of_checkpoints_are_those_nnunet_writes(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=2, checkpoint_interval=1)
    written = set()
    save = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", lambda name: (written.add(Path(name).name), save(name)))
    trainer.run_training()
    assert written == {LATEST, BEST, FINAL}


def test_a_finished_training_leaves_only_the_checkpoints_nnunet_leaves(make_trainer):
    trainer = make_trainer(epochs=3, checkpoint_interval=1)
    trainer.run_training()
    names = sorted(path.name for path in Path(trainer.output_folder).glob("checkpoint*"))
    assert names == [BEST, FINAL]


def test_a_full_disk_leaves_the_old_checkpoint_and_is_named(make_trainer, full_disk):
    fill, make_room = full_disk
    trainer = make_trainer()
    trainer.initialize()
    latest = checkpoint(trainer, LATEST)
    trainer.save_checkpoint(str(latest))
    before = latest.read_bytes()
    fill()
    with pytest.raises(ProcessingError, match=r"checkpoint_latest.pth: cannot be written.*The disk /.* free.*With --c"):
        trainer.save_checkpoint(str(latest))
    make_room()
    assert latest.read_bytes() == before
    assert sorted(path.name for path in latest.parent.iterdir() if "checkpoint" in path.name) == [LATEST]


@pytest.mark.parametrize("damage", ["truncated", "flipped byte", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(make_trainer, damage):
    trainer = make_trainer()
    trainer.initialize()
    latest = checkpoint(trainer, LATEST)
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
    assert "going on from checkpoint_previous.pth instead" in log_of(again)


def test_the_previous_checkpoint_is_kept_without_hard_links_too(make_trainer, monkeypatch):
    def refuse(*_):
        raise OSError("this file system has no hard links")

    monkeypatch.setattr(checkpoint_files.os, "link", refuse)
    trainer = make_trainer()
    trainer.initialize()
    for _ in range(2):
        trainer.save_checkpoint(str(checkpoint(trainer, LATEST)))
    assert is_intact(checkpoint(trainer, LATEST)) and is_intact(checkpoint(trainer, PREVIOUS))


def test_when_no_checkpoint_is_intact_the_error_says_what_to_do(make_trainer):
    trainer = make_trainer()
    checkpoint(trainer, LATEST).write_bytes(b"no checkpoint")
    with pytest.raises(RuntimeError, match=r"checkpoint_latest.pth: this checkpoint is damaged.*without --c"):
        trainer.load_checkpoint(str(checkpoint(trainer, LATEST)))


# ---- signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_after_the_step_and_a_continued_run_repeats_the_epoch(make_trainer, monkeypatch, number):
    trainer = make_trainer(epochs=3, iterations_per_epoch=2)
    trainer.initialize()
    steps = at_step(monkeypatch, trainer, 3, send(number))  # the first step of epoch 1
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == EXIT_STOPPED
    assert signal.getsignal(number) == before
    assert len(steps) == 3
    assert trainer.current_epoch == 1  # saving has changed nothing

    again = make_trainer(epochs=3, iterations_per_epoch=2)
    again.load_checkpoint(str(checkpoint(trainer, LATEST)))
    assert again.current_epoch == 1
    again.run_training()
    final = load(checkpoint(again, FINAL))
    assert {name: len(values) for name, values in final["logging"].items()} == dict.fromkeys(final["logging"], 3)


def test_under_nohup_a_closed_terminal_does_not_stop_the_training(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=1)
    at_step(monkeypatch, trainer, 1, send(signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer.run_training()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert checkpoint(trainer, FINAL).exists()


def test_a_second_ctrl_c_ends_at_once(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=1)
    at_step(monkeypatch, trainer, 1, lambda: (send(signal.SIGINT)(), send(signal.SIGINT)()))
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()


def test_a_signal_in_the_first_epoch_starts_again_at_epoch_0(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=3, iterations_per_epoch=2)
    at_step(monkeypatch, trainer, 1, send(signal.SIGTERM))
    with pytest.raises(SystemExit):
        trainer.run_training()
    again = make_trainer(epochs=3)
    again.load_checkpoint(str(checkpoint(trainer, LATEST)))
    assert again.current_epoch == 0
    assert not any(again.logger.get_checkpoint().values())


def test_a_disk_that_is_full_after_a_signal_is_a_failure_and_the_old_checkpoint_stays(
    make_trainer, monkeypatch, full_disk
):
    fill, make_room = full_disk
    trainer = make_trainer(epochs=3, iterations_per_epoch=2, checkpoint_interval=1)
    trainer.initialize()
    at_step(monkeypatch, trainer, 4, lambda: (send(signal.SIGTERM)(), fill()))  # in epoch 1
    with pytest.raises(ProcessingError, match=r"checkpoint_latest.pth: cannot be written.*The disk /.* free.*With --c"):
        trainer.run_training()
    make_room()
    assert "Stopped by" not in log_of(trainer)
    again = make_trainer(epochs=3)
    again.load_checkpoint(str(checkpoint(trainer, LATEST)))
    assert again.current_epoch == 1
    # The same trainer saves the same epoch when there is room again.
    with pytest.raises(SystemExit):
        trainer._stop()
    assert load(checkpoint(trainer, LATEST))["current_epoch"] == 1


def test_another_error_after_a_signal_is_not_hidden(make_trainer, monkeypatch):
    trainer = make_trainer()
    trainer.initialize()

    def fail():
        send(signal.SIGTERM)()
        raise RuntimeError("the GPU is gone")

    at_step(monkeypatch, trainer, 1, fail)
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        trainer.run_training()
    assert not checkpoint(trainer, LATEST).exists()


ends_a_thread = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
"""The thread of batchgenerators that watches its processes ends with an error when they died."""


class Numbers:
    """A data loader as batchgenerators takes it."""

    def set_thread_id(self, number): ...

    def __next__(self):
        return {"number": 1}


@ends_a_thread
def test_batchgenerators_says_that_workers_died_as_we_expect():
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

    loader = NonDetMultiThreadedAugmenter(Numbers(), None, 1, wait_time=0.002)
    next(loader)
    os.kill(loader._processes[0].pid, signal.SIGKILL)
    loader._processes[0].join()
    while not loader.abort_event.is_set():
        time.sleep(0.01)
    with pytest.raises(RuntimeError) as died:
        next(loader)
    assert workers_died(died.value)
    assert not workers_died(RuntimeError("CUDA out of memory"))


@ends_a_thread
def test_workers_that_died_by_the_signal_stop_the_training_like_the_signal(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer(epochs=100, iterations_per_epoch=100)
    trainer.initialize()

    def end_all():
        trainer.dataloader_train._processes[0].terminate()
        trainer.dataloader_train._processes[0].join()
        while not trainer.dataloader_train.abort_event.is_set():
            time.sleep(0.01)
        send(signal.SIGTERM)()
        next(trainer.dataloader_train)

    at_step(monkeypatch, trainer, 2, end_all)
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == EXIT_STOPPED
    assert load(checkpoint(trainer, LATEST))["current_epoch"] == 0


@ends_a_thread
def test_data_loading_processes_outlive_sigusr1_and_end_on_sigterm(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer(epochs=1, iterations_per_epoch=100)
    trainer.initialize()
    codes = []

    def send_to_workers():
        workers = [trainer.dataloader_train._processes[0], trainer.dataloader_val._processes[0]]
        for worker, number in zip(workers, (signal.SIGUSR1, signal.SIGTERM)):
            os.kill(worker.pid, number)
            worker.join(timeout=1 if number == signal.SIGUSR1 else 300)
            codes.append(worker.exitcode)
        for _ in range(20):  # more than are kept ready
            next(trainer.dataloader_train)
        send(signal.SIGUSR1)()

    at_step(monkeypatch, trainer, 1, send_to_workers)
    with pytest.raises(SystemExit):
        trainer.run_training()
    assert codes == [None, -signal.SIGTERM]


def test_on_cpus_it_keeps_to_the_threads_it_is_given(make_trainer, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    try:
        make_trainer().initialize()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# ---- nnU-Net's own network


def test_nnunets_own_network_is_trained_stopped_and_continued(make_unet, monkeypatch):
    trainer = make_unet()
    trainer.initialize()
    assert type(trainer.bare_network).__name__ == "PlainConvUNet"
    at_step(monkeypatch, trainer, SKIPS + 2, send(signal.SIGTERM))  # in epoch 1
    with pytest.raises(SystemExit):
        trainer.run_training()
    again = make_unet()
    again.load_checkpoint(str(checkpoint(trainer, LATEST)))
    assert again.current_epoch == 1
    again.run_training()
    assert load(checkpoint(again, FINAL))["current_epoch"] == 2
    plans = json.loads(Path(again.output_folder_base, "plans.json").read_text())
    assert plans["configurations"] == unet_plans()["configurations"]


def test_nnunets_own_network_goes_back_in_fp32_and_stays_there(make_unet, few_skips, monkeypatch):
    monkeypatch.setenv("NNUNET_GLIMS_PRECISION", "bf16")
    trainer = make_unet()
    poison(trainer, calls=range(SKIPS + 1, 2 * SKIPS + 1))
    assert "Precision: bf16 on cpu" in log_of(trainer)
    trainer.run_training()
    assert "Going back to checkpoint_latest.pth (epoch 1), and on in fp32" in log_of(trainer)
    again = make_unet()
    again.load_checkpoint(str(checkpoint(trainer, FINAL)))
    assert again.precision == "fp32"


def test_nnunets_own_network_computes_in_the_precision_that_is_set(make_unet):
    trainer = make_unet()
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    seen = []
    trainer.bare_network.register_forward_hook(lambda network, inputs, outputs: seen.append(outputs[0].dtype))
    for setting in ("fp32", "bf16"):
        trainer.set_precision(setting)
        trainer.train_step(batch)
    assert seen == [torch.float32, torch.bfloat16]


# ---- the real command


def train_command(*arguments):
    program = Path(sysconfig.get_path("scripts"), "nnUNetv2_train")
    return [str(program), DATASET, "3d_fullres", "0", "-tr", "nnUNetTrainerLATUPNet", "-device", "cpu", *arguments]


@pytest.mark.slow
def test_the_real_command_stops_on_sigterm_with_workers_and_goes_on(nnunet_folders, make_trainer):
    plans = make_plans("LATUPNet", (16, 16, 16), epochs=500, iterations_per_epoch=4, checkpoint_interval=1000)
    plans_file = nnunet_folders / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans_file.write_text(json.dumps(plans))
    environment = {**os.environ, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("nnUNet_extTrainer", None)
    log = nnunet_folders / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            train_command(), env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        wait_until(lambda: "Epoch 1" in log.read_text() or process.poll() is not None)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the workers get it too
        assert process.wait(timeout=300) == EXIT_STOPPED, log.read_text()[-3000:]
    folder = nnunet_folders / "results" / DATASET / "nnUNetTrainerLATUPNet__nnUNetPlans__3d_fullres/fold_0"
    stopped_at = load(folder / LATEST)["current_epoch"]
    assert stopped_at >= 1

    again = make_trainer(epochs=stopped_at + 1)
    again.load_checkpoint(str(folder / LATEST))
    again.run_training()
    assert load(folder / FINAL)["current_epoch"] == stopped_at + 1
