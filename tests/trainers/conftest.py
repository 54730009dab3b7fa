import pytest
import torch

from tests.preprocessed import dataset_json, make_plans, write_preprocessed


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch):
    """nnU-Net's variables pointing at a preprocessed data set and an empty results folder; data loading in-process."""
    write_preprocessed(tmp_path / "preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


@pytest.fixture
def make_trainer(nnunet_folders):
    """Builds a trainer of a tiny network on the CPU: make_trainer("GLIMS", lr=...)."""
    from nnunet_glims import trainers
    from nnunet_glims.networks import network_named

    def make(network="LATUPNet", plans=None, regions=False, configuration="3d_fullres", trainer=None, **training):
        trainer_class = trainer or getattr(trainers, network_named(network).trainer)
        plans = plans or make_plans(network, **training)
        return trainer_class(plans, configuration, 0, dataset_json(regions), torch.device("cpu"))

    return make
