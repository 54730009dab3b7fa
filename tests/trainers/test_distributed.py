"""Two processes, gloo instead of NCCL: nnU-Net itself runs distributed training on GPUs only."""

import os

import pytest
import torch

from tests.preprocessed import dataset_json, make_plans
from tests.two_workers import in_two_workers

NETWORKS = {"GLIMS": (32, 32, 32), "LATUPNet": (16, 16, 16)}


def _worker(rank, environment):
    os.environ.update(environment)
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet

    on_gpu = nnunet.DDP
    nnunet.DDP = lambda module, device_ids: on_gpu(module)
    return {network: _train(rank, network) for network in NETWORKS}


def _train(rank, network):
    from nnunet_glims import trainers
    from nnunet_glims.networks import network_named
    from nnunet_glims.trainers.stop_signals import STOP_SIGNALS

    plans = make_plans(network, NETWORKS[network], epochs=1, loss="glims")
    plans["configurations"]["3d_fullres"]["batch_dice"] = True
    trainer_class = getattr(trainers, network_named(network).trainer)
    trainer = trainer_class(plans, "3d_fullres", 0, dataset_json(), torch.device("cpu"))
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    assert trainer.is_ddp
    trainer.initialize()
    assert trainer._plain_loss().dc.ddp
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batches = [next(trainer.dataloader_train) for _ in range(3)]
    assert batches[0]["data"].shape[0] == 1
    trainer.train_step(batches[0])
    trainer.train_step(batches[1])
    if rank == 1:  # a bad case on one worker must be skipped by both
        batches[2]["data"][:] = float("nan")
    trainer.train_step(batches[2])
    weights = torch.cat([p.detach().flatten() for p in trainer.bare_network.parameters()])
    if rank == 1:  # a signal to one worker must stop both
        trainer._stop_signals.received = STOP_SIGNALS[0]
    with pytest.raises(SystemExit) as stopped:
        trainer.train_step(batches[1])
    return {"skipped": trainer.skipped_steps, "weights": weights, "code": stopped.value.code}


@pytest.mark.slow
def test_workers_train_skip_and_stop_together(nnunet_folders):
    names = ("nnUNet_preprocessed", "nnUNet_results", "nnUNet_raw", "nnUNet_n_proc_DA", "nnUNet_compile")
    environment = {name: os.environ[name] for name in names}
    first, second = in_two_workers(_worker, nnunet_folders, environment)
    for network in NETWORKS:
        assert [found[network]["skipped"] for found in (first, second)] == [1, 1]
        assert [found[network]["code"] for found in (first, second)] == [75, 75]
        assert torch.equal(first[network]["weights"], second[network]["weights"])
        assert torch.isfinite(first[network]["weights"]).all()
    latest = list((nnunet_folders / "results").rglob("checkpoint_latest.pth"))
    assert [torch.load(path, weights_only=False)["current_epoch"] for path in latest] == [0, 0]
