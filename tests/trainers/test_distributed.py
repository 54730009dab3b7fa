"""Two processes, gloo instead of NCCL: nnU-Net itself runs distributed training on GPUs only."""

import os
import socket

import pytest
import torch
from torch import distributed, multiprocessing

from tests.preprocessed import dataset_json, make_plans


def _worker(rank, port, network, results):
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet

    from nnunet_glims import trainers
    from nnunet_glims.networks import network_named
    from nnunet_glims.trainers import robust_trainer

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    on_gpu = nnunet.DDP
    nnunet.DDP = lambda module, device_ids: on_gpu(module)
    trainer_class = getattr(trainers, network_named(network).trainer)
    trainer = trainer_class(make_plans(network, epochs=1), "3d_fullres", 0, dataset_json(), torch.device("cpu"))
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    assert trainer.is_ddp
    trainer.initialize()
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
    results[rank] = {
        "skipped": trainer.skipped_steps,
        "weights": torch.cat([p.detach().flatten() for p in trainer.bare_network.parameters()]).double().sum().item(),
    }
    if rank == 1:  # a signal to one worker must stop both
        trainer._stop_signal = robust_trainer.STOP_SIGNALS[0]
    try:
        trainer.train_step(batches[1])
    except SystemExit as stopped:
        results[rank] = {**results[rank], "code": stopped.code}
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["GLIMS", "LATUPNet"])
def test_workers_train_skip_and_stop_together(nnunet_folders, network):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_worker, args=(port, network, results), nprocs=2)
        results = dict(results)
    assert [results[rank]["skipped"] for rank in (0, 1)] == [1, 1]
    assert [results[rank]["code"] for rank in (0, 1)] == [75, 75]
    assert results[0]["weights"] == results[1]["weights"]
    assert torch.isfinite(torch.tensor(results[0]["weights"]))
    latest = next((nnunet_folders / "results").rglob("checkpoint_latest.pth"))
    assert torch.load(latest, weights_only=False)["current_epoch"] == 0
