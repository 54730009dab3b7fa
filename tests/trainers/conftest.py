import pytest
import torch

from tests.preprocessed import dataset_json, make_plans, write_preprocessed


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These networks are so small that threads only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch):
    """nnU-Net's variables pointing at a preprocessed data set and an empty results folder; data loading in-process."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    write_preprocessed(tmp_path / "preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "0")
    monkeypatch.delenv("NNUNET_GLIMS_PRECISION", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)  # takes longer than an epoch here
    return tmp_path


@pytest.fixture
def make_trainer(nnunet_folders):
    """Builds a trainer of a tiny network on the CPU: make_trainer("GLIMS", lr=...). LATUP-Net has patches of 16³."""
    from nnunet_glims import trainers
    from nnunet_glims.networks import network_named

    def make(network="LATUPNet", plans=None, regions=False, configuration="3d_fullres", trainer=None, **training):
        trainer_class = trainer or getattr(trainers, network_named(network).trainer)
        plans = plans or make_plans(network, (16,) * 3 if network == "LATUPNet" else (32,) * 3, **training)
        return trainer_class(plans, configuration, 0, dataset_json(regions), torch.device("cpu"))

    return make
