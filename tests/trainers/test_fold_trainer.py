"""What may happen to the files of a fold: broken images, weights that are not finite, two trainings, full disks, kills."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.nnunet.checkpoints import FINAL
from nnunet_glims.nnunet.training_log import TRAINING_LOCK
from nnunet_glims.trainers import fold_trainer
from nnunet_glims.trainers.checkpoint_files import BEST, LATEST, PREVIOUS
from tests.preprocessed import DATASET, make_plans
from tests.trainers.test_robust_trainer import at_step, checkpoint, ends_a_thread, load, log_of
from tests.waiting import is_running, wait_until

CASES = [f"cube_{number}" for number in range(4)]  # the last one is for validation


def preprocessed(folders):
    return folders / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres"


def break_images(folders, cases, value=np.nan):
    """Write other images for these cases, as nnU-Net does, with one or all values that are not finite."""
    folder = preprocessed(folders)
    for case in cases:
        data, labels, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
        image, labels = np.full(data.shape, value, np.float32), np.array(labels[:])
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{case}{ending}").unlink()
        shape = {"chunks": (2, 36, 36, 36), "blocks": (1, 36, 36, 36)}
        nnUNetDatasetBlosc2.save_case(image, labels, dict(properties), str(folder / case), **shape)


@pytest.fixture(autouse=True)
def quick_validation(monkeypatch):
    """nnU-Net's validation needs seconds to start its processes; here it only leaves its last file."""

    def validate(trainer, save_probabilities=False):
        Path(trainer.output_folder, "validation").mkdir(exist_ok=True)
        Path(trainer.output_folder, "validation/summary.json").write_text("{}")

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", validate)


def train(folders, *, trainer="nnUNetTrainerLATUPNet", continued=False, only_validation=False, **training):
    """Train fold 0 as `nnUNetv2_train` does, in this process."""
    from nnunetv2.run.run_training import run_training

    plans = make_plans("LATUPNet", (16, 16, 16), **training)
    (folders / "preprocessed" / DATASET / "nnUNetPlans.json").write_text(json.dumps(plans))
    run_training(
        DATASET,
        "3d_fullres",
        0,
        trainer,
        continue_training=continued,
        only_run_validation=only_validation,
        device=torch.device("cpu"),
    )


def fold(folders):
    return folders / "results" / DATASET / "nnUNetTrainerLATUPNet__nnUNetPlans__3d_fullres/fold_0"


def spoil(path, value=float("nan"), everywhere=True):
    """Put a value that is not finite into the weights of a checkpoint."""
    content = load(path)
    weights = [weight for weight in content["network_weights"].values() if weight.is_floating_point()]
    for weight in weights if everywhere else weights[-1:]:
        weight.view(-1)[0] = value
    torch.save(content, path)


# ---- trainings that learn nothing


@pytest.mark.parametrize(("value", "precision"), [(np.nan, "fp32"), (np.inf, "bf16")])
def test_images_that_are_not_finite_end_the_training_with_their_names(nnunet_folders, value, precision):
    break_images(nnunet_folders, CASES[:3], value)
    with pytest.raises(
        ProcessingError, match=r"images have values that are not finite \(.*cube_\d.*no step of epoch 0"
    ):
        train(nnunet_folders, epochs=2, iterations_per_epoch=2, precision=precision)
    assert not list(fold(nnunet_folders).glob("checkpoint*"))
    plans = json.loads((fold(nnunet_folders).parent / "plans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["training"]["precision"] == precision  # fp32 would be no help


def test_a_bad_image_among_good_ones_is_named_and_skipped(nnunet_folders):
    break_images(nnunet_folders, CASES[:1])
    train(nnunet_folders, epochs=2, iterations_per_epoch=8, seed=1)
    text = "".join(path.read_text() for path in fold(nnunet_folders).glob("training_log*"))
    assert "Images of cube_0 not finite: step skipped" in text.replace("cube_0, cube_0", "cube_0")
    assert all(torch.isfinite(value).all() for value in load(fold(nnunet_folders) / FINAL)["network_weights"].values())


def test_validation_images_that_are_not_finite_end_the_training(nnunet_folders):
    break_images(nnunet_folders, CASES[3:])
    with pytest.raises(ProcessingError, match=r"diverged in fp32: no validation loss of epoch 0 was finite"):
        train(nnunet_folders, epochs=1)
    assert not (fold(nnunet_folders) / FINAL).exists()


@pytest.mark.parametrize("setting", [{"lr": 1e30}, {"weight_decay": 1e300}, {"momentum": 1.0}, {"epochs": 10**9}])
def test_settings_beyond_their_limits_are_refused_before_anything_is_written(nnunet_folders, setting):
    (name,) = setting
    with pytest.raises(UsageError, match=rf"nnUNetPlans: 3d_fullres: training: {name}: .*\b(10|1|0\.9999|100000)\b"):
        train(nnunet_folders, **setting)
    assert not (nnunet_folders / "results").exists()


@pytest.mark.parametrize("size", [0, 100_000, 1.5, "two"])
def test_a_batch_size_beyond_its_limits_is_refused(make_trainer, nnunet_folders, size):
    plans = make_plans("LATUPNet", (16, 16, 16))
    plans["configurations"]["3d_fullres"]["batch_size"] = size
    with pytest.raises(UsageError, match=r"3d_fullres: batch_size: .*1024"):
        make_trainer(plans=plans)
    assert not (nnunet_folders / "results").exists()


def test_the_highest_allowed_settings_end_in_an_error_or_in_finite_weights(nnunet_folders):
    with contextlib.suppress(ProcessingError):
        train(nnunet_folders, optimizer="SGD", lr=10, weight_decay=1, momentum=0.9999, epochs=3, iterations_per_epoch=8)
    for path in fold(nnunet_folders).glob("checkpoint*"):
        assert all(torch.isfinite(value).all() for value in load(path)["network_weights"].values())


def overflow(trainer):
    with torch.no_grad():
        next(trainer.bare_network.parameters()).view(-1)[0] = float("inf")


@pytest.mark.parametrize("step", [2, 4])
def test_weights_that_overflow_in_the_last_step_are_not_saved(make_trainer, monkeypatch, step):
    trainer = make_trainer(epochs=2, iterations_per_epoch=2, precision="fp32", checkpoint_interval=1)
    take_step, steps = trainer.train_step, []

    def then_overflow(batch):
        loss = take_step(batch)
        steps.append(1)
        if len(steps) == step:
            overflow(trainer)
        return loss

    monkeypatch.setattr(trainer, "train_step", then_overflow)
    with pytest.raises(
        ProcessingError, match=r"diverged in fp32: after epoch \d the weights are not finite \(NaN or inf.* in 1 of"
    ):
        trainer.run_training()
    assert not checkpoint(trainer, FINAL).exists()
    assert checkpoint(trainer, LATEST).exists() == (step == 4)


def test_a_stop_signal_does_not_save_weights_that_are_not_finite(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=3, iterations_per_epoch=4, precision="fp32")
    at_step(monkeypatch, trainer, 2, lambda: (overflow(trainer), os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(
        ProcessingError, match=r"checkpoint_latest.pth was not written, because the weights are not finite"
    ):
        trainer.run_training()
    assert not checkpoint(trainer, LATEST).exists()


def test_pretrained_weights_that_are_not_finite_are_refused(make_trainer, nnunet_folders):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    trainer = make_trainer()
    trainer.initialize()
    path = nnunet_folders / "pretrained.pth"
    torch.save({"network_weights": trainer.network.state_dict()}, path)
    spoil(path)
    with pytest.raises(ProcessingError, match="loaded weights are not finite"):
        load_pretrained_weights(trainer.network, str(path))
    overflow(trainer)
    with pytest.raises(ProcessingError, match="not finite before the first step"):
        trainer.run_training()


# ---- checkpoints with weights that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_training_goes_on_from_the_newest_finite_checkpoint_and_says_so(nnunet_folders, make_trainer, value):
    trainer = make_trainer(epochs=9)
    trainer.initialize()
    for name, epoch in ((BEST, 6), (PREVIOUS, 3), (LATEST, 7)):
        trainer.current_epoch = epoch
        trainer.save_checkpoint(str(checkpoint(trainer, name)))
    spoil(checkpoint(trainer, LATEST), value, everywhere=False)
    again = make_trainer(epochs=9)
    again.load_checkpoint(str(checkpoint(trainer, LATEST)))
    assert again.current_epoch == 7  # of the checkpoint that was written in epoch 6
    assert "checkpoint_latest.pth holds weights that are not finite (NaN or infinity in 1 of" in log_of(again)
    assert "going on from checkpoint_best.pth instead" in log_of(again)


def test_without_a_finite_checkpoint_it_is_refused(nnunet_folders):
    train(nnunet_folders, epochs=2)
    for path in fold(nnunet_folders).glob("checkpoint*"):
        spoil(path)
    before = {path: path.read_bytes() for path in fold(nnunet_folders).glob("checkpoint*")}
    with pytest.raises(ProcessingError, match=r"checkpoint_final.pth: .*not finite.*no other one.*without --c"):
        train(nnunet_folders, epochs=2, continued=True)
    assert {path: path.read_bytes() for path in fold(nnunet_folders).glob("checkpoint*")} == before


def test_a_final_checkpoint_that_is_not_finite_is_trained_again_with_c_and_not_replaced_in_a_validation(nnunet_folders):
    train(nnunet_folders, epochs=2)
    summary = fold(nnunet_folders) / "validation/summary.json"
    summary.unlink()
    spoil(fold(nnunet_folders) / FINAL)
    with pytest.raises(
        ProcessingError, match=r"checkpoint_final.pth holds weights that are not finite.*nothing was validated"
    ):
        train(nnunet_folders, epochs=2, only_validation=True)
    assert not summary.exists()
    train(nnunet_folders, epochs=2, continued=True)
    assert summary.exists()
    assert all(torch.isfinite(value).all() for value in load(fold(nnunet_folders) / FINAL)["network_weights"].values())


def test_checkpoints_of_an_earlier_training_are_not_gone_back_to(nnunet_folders, make_trainer):
    earlier = make_trainer(epochs=9)
    earlier.initialize()
    earlier.current_epoch = 7
    earlier.save_checkpoint(str(checkpoint(earlier, LATEST)))
    trainer = make_trainer(epochs=9)
    trainer.initialize()
    assert trainer.newest_own_checkpoint() is None
    trainer.save_checkpoint(str(checkpoint(trainer, LATEST)))
    assert not checkpoint(trainer, PREVIOUS).exists()
    assert trainer.newest_own_checkpoint().epoch == 1


def test_a_network_refuses_to_predict_with_weights_that_are_not_finite(nnunet_folders):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    train(nnunet_folders, epochs=1)
    spoil(fold(nnunet_folders) / FINAL)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    with pytest.raises(ProcessingError, match=r"loaded weights are not finite.*-chk checkpoint_best.pth"):
        predictor.initialize_from_trained_model_folder(str(fold(nnunet_folders).parent), (0,), FINAL)
    predictor.initialize_from_trained_model_folder(str(fold(nnunet_folders).parent), (0,), BEST)


# ---- data loading


@ends_a_thread
@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_damaged_preprocessed_case_is_named_by_the_last_error(nnunet_folders, monkeypatch, processes):
    monkeypatch.setenv("nnUNet_n_proc_DA", processes)
    path = preprocessed(nnunet_folders) / "cube_1.b2nd"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(
        ProcessingError, match=r"case cube_1 of .*nnUNetPlans_3d_fullres cannot be loaded: .*[Pp]reprocess"
    ):
        train(nnunet_folders, epochs=9, iterations_per_epoch=20)


@ends_a_thread
def test_a_killed_data_loading_process_is_told(nnunet_folders, make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer(epochs=9, iterations_per_epoch=2)

    def kill():
        process = trainer.dataloader_train._processes[0]
        process.kill()
        process.join()
        while not trainer.dataloader_train.abort_event.is_set():
            time.sleep(0.01)

    at_step(monkeypatch, trainer, 3, kill)
    with pytest.raises(ProcessingError, match=r"a data loading process was killed by SIGKILL.*nnUNet_n_proc_DA.*--c"):
        trainer.run_training()


def test_another_error_ends_the_data_loading_processes_before_it_is_told(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer()
    processes = []

    def fail():
        processes.extend(trainer.dataloader_train._processes + trainer.dataloader_val._processes)
        raise RuntimeError("the GPU is gone")

    at_step(monkeypatch, trainer, 1, fail)
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        trainer.run_training()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_split_without_cases_is_named(nnunet_folders, part):
    splits = nnunet_folders / "preprocessed" / DATASET / "splits_final.json"
    splits.write_text(json.dumps([{"train": CASES[:3], "val": CASES[3:], part: []}]))
    with pytest.raises(UsageError, match=r"splits_final.json: fold 0 has no case for (training|validation): "):
        train(nnunet_folders)


# ---- one training at a time

HOLD = """
import sys, time
from pathlib import Path
from nnunet_glims.locks import lock
with lock(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def other_training(nnunet_folders):
    """Another process that trains the fold."""
    command = [sys.executable, "-c", HOLD, str(fold(nnunet_folders) / TRAINING_LOCK)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_training_is_refused_and_a_dead_one_does_not_block(nnunet_folders, other_training):
    with pytest.raises(
        ProcessingError, match=rf"fold_0: another process does this already \(user .*{other_training.pid} on"
    ):
        train(nnunet_folders, epochs=1)
    assert not list(fold(nnunet_folders).glob("checkpoint*"))
    other_training.kill()
    other_training.wait()
    train(nnunet_folders, epochs=1)
    with contextlib.suppress(FileNotFoundError):
        (fold(nnunet_folders) / TRAINING_LOCK).unlink()
    names = {path.name for path in fold(nnunet_folders).iterdir() if path.name.startswith(".")}
    assert names == set()


# ---- what kills leave, and full disks


def test_what_a_killed_training_left_is_removed_by_the_next(nnunet_folders):
    for name in (FINAL, LATEST, BEST):
        left = fold(nnunet_folders) / f".{name}.x8f2a_q1.tmp"
        left.mkdir(parents=True)
        (left / name).write_bytes(b"cut off")
    other = fold(nnunet_folders) / ".notes.tmp"
    other.mkdir()
    train(nnunet_folders, epochs=1)
    left = [path.name for path in fold(nnunet_folders).glob(".*") if path.name.endswith((".tmp", ".new"))]
    assert left == [".notes.tmp"]


def test_a_disk_without_room_for_a_checkpoint_is_named_before_anything_is_trained(nnunet_folders, monkeypatch):
    usage = fold_trainer.shutil.disk_usage

    def full(path):
        return usage(path)._replace(free=12_345)

    monkeypatch.setattr(fold_trainer.shutil, "disk_usage", full)
    message = r"checkpoint_latest.pth: cannot be written: a checkpoint needs about [\d,]+ bytes. The disk /\S* has 12,345 bytes"
    with pytest.raises(ProcessingError, match=message):
        train(nnunet_folders, epochs=1)
    assert not (fold(nnunet_folders).parent / "plans.json").exists()


def test_a_disk_that_fills_up_is_told_with_the_file(nnunet_folders, make_trainer, monkeypatch):
    trainer = make_trainer()

    def fill():
        # nnU-Net's save_json raises this when the disk is full: it names no file.
        with open(Path(trainer.output_folder, "debug.json"), "w") as file:
            file.write("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "_save_debug_information", fill)
    with pytest.raises(
        ProcessingError, match=r"debug.json: cannot be written: No space left on device. The disk .* free"
    ):
        trainer.run_training()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha"])
def test_a_prediction_that_the_full_disk_has_cut_off_is_no_result(make_trainer, ending):
    import SimpleITK as sitk

    trainer = make_trainer()
    trainer.dataset_json["file_ending"] = ending
    trainer.initialize()
    folder = Path(trainer.output_folder, "validation")
    folder.mkdir()
    for case in ("a", "b"):
        labels = np.random.default_rng(0).integers(0, 3, (16, 16, 16)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / f"{case}{ending}"))
    trainer.perform_actual_validation()
    cut = folder / f"b{ending}"
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(
        ProcessingError, match=rf"validation/b{ending}: .*bytes \(.*free: make room, and validate again"
    ):
        trainer.perform_actual_validation()
    assert [path.name for path in folder.iterdir()] == [f"a{ending}"]


def test_a_terminal_that_was_closed_does_not_end_the_training(make_trainer, monkeypatch):
    def closed(*_):
        raise OSError(5, "Input/output error")

    trainer = make_trainer(epochs=1)
    trainer.initialize()
    monkeypatch.setattr(sys.stdout, "write", closed)
    trainer.print_to_log_file("a line")
    monkeypatch.undo()
    assert "a line" in log_of(trainer)


@pytest.mark.slow
def test_data_loading_processes_end_with_a_killed_training(nnunet_folders):
    from tests.trainers.test_robust_trainer import train_command

    plans = make_plans("LATUPNet", (16, 16, 16), epochs=500, iterations_per_epoch=4)
    (nnunet_folders / "preprocessed" / DATASET / "nnUNetPlans.json").write_text(json.dumps(plans))
    environment = {**os.environ, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    log = nnunet_folders / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(train_command(), env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: "Epoch 1" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()[-3000:]
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        finally:
            process.kill()
            process.wait()
    assert len(children) >= 2
    wait_until(lambda: not any(map(is_running, children)))
