"""Two processes, gloo instead of NCCL: nnU-Net itself runs distributed training on GPUs only."""

import os

import pytest
import torch
from torch import distributed, multiprocessing

from tests.preprocessed import dataset_json, make_plans

NETWORKS = {"GLIMS": (32, 32, 32), "LATUPNet": (16, 16, 16)}


def _worker(rank, folder, environment):
    os.environ.update(environment)
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    on_gpu = nnunet.DDP
    nnunet.DDP = lambda module, device_ids: on_gpu(module)
    torch.save({network: _train(rank, network) for network in NETWORKS}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


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
    multiprocessing.spawn(_worker, args=(str(nnunet_folders), environment), nprocs=2)
    first, second = (torch.load(nnunet_folders / f"{rank}.pt") for rank in (0, 1))
    for network in NETWORKS:
        assert [found[network]["skipped"] for found in (first, second)] == [1, 1]
        assert [found[network]["code"] for found in (first, second)] == [75, 75]
        assert torch.equal(first[network]["weights"], second[network]["weights"])
        assert torch.isfinite(first[network]["weights"]).all()
    latest = list((nnunet_folders / "results").rglob("checkpoint_latest.pth"))
    assert [torch.load(path, weights_only=False)["current_epoch"] for path in latest] == [0, 0]
