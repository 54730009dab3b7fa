import json
import shutil
from pathlib import Path

import pytest

from nnunet_glims.demo.phantom import write_raw_dataset
from nnunet_glims.nnunet.plans.override import apply_override

from . import DATASET, FOLDS, GLIMS, LATUPNET, PLANS, call, predict, tiny_override, train


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """nnU-Net's three folders with a planned and preprocessed data set of 10 training cases and 1 test case."""
    root = tmp_path_factory.mktemp("nnunet")
    folders = {f"nnUNet_{name}": root / name for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        folder.mkdir()
    write_raw_dataset(
        folders["nnUNet_raw"], DATASET, cases=10, test_cases=1, shape=(32, 36, 30), spacing_mm=(5.0, 5.0, 6.0)
    )
    # nnU-Net's planner wants at least one process for augmentation, its trainer runs without.
    command = ("nnUNetv2_plan_and_preprocess", "-d", "901", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    call(*command, **folders, nnUNet_n_proc_DA=1)
    return folders


@pytest.fixture(scope="session")
def dataset_folder(folders):
    """The data set in nnUNet_preprocessed."""
    return folders["nnUNet_preprocessed"] / DATASET


@pytest.fixture(scope="session")
def tiny_plans(folders, tmp_path_factory):
    """nnUNetPlans_tiny.json, for GLIMS, made by our command."""
    path = tmp_path_factory.mktemp("glims") / "tiny.json"
    path.write_text(json.dumps(tiny_override("GLIMS")))
    call("nnunet-glims", "plans", "apply", path, "-d", "901", **folders)
    return PLANS


@pytest.fixture(scope="session")
def fold_0(folders, tiny_plans):
    """GLIMS trained on fold 0; returns nnU-Net's folders."""
    train(0, "--npz", **folders)
    return folders


@pytest.fixture(scope="session")
def latupnet_preprocessed(folders, tmp_path_factory):
    """A second nnUNet_preprocessed, in which nnUNetPlans_tiny.json is for LATUPNet.

    nnUNetv2_find_best_configuration pairs every trainer with every plans name, so both networks need plans of one name.
    """
    preprocessed = tmp_path_factory.mktemp("latupnet_preprocessed")
    shutil.copytree(folders["nnUNet_preprocessed"] / DATASET, preprocessed / DATASET)
    path = tmp_path_factory.mktemp("latupnet") / "tiny.json"
    path.write_text(json.dumps(tiny_override("LATUPNet")))
    apply_override(preprocessed / DATASET, str(path), overwrite=True)
    return preprocessed


@pytest.fixture(scope="session")
def five_folds(fold_0, latupnet_preprocessed):
    """GLIMS and LATUPNet trained on all five folds, with validation probabilities; returns nnU-Net's folders."""
    for fold in FOLDS[1:]:
        train(fold, "--npz", **fold_0)
    for fold in FOLDS:
        train(fold, "--npz", trainer=LATUPNET, **{**fold_0, "nnUNet_preprocessed": latupnet_preprocessed})
    return fold_0


@pytest.fixture(scope="session")
def prediction(fold_0, tmp_path_factory):
    """Folder with GLIMS's prediction of the test case by fold 0."""
    return predict(tmp_path_factory.mktemp("prediction"), **fold_0)


@pytest.fixture(scope="session")
def latupnet_prediction(five_folds, tmp_path_factory):
    """Folder with LATUPNet's prediction of the test case by fold 0."""
    return predict(tmp_path_factory.mktemp("latupnet_prediction"), trainer=LATUPNET, **five_folds)


@pytest.fixture
def copied_fold_0(fold_0, tmp_path):
    """nnU-Net's folders with a copy of the trained fold 0 that a test may change."""
    copied = {**fold_0, "nnUNet_results": tmp_path / "results"}
    model = Path(DATASET, f"{GLIMS}__{PLANS}__3d_fullres")
    leave_out = shutil.ignore_patterns("fold_[1-4]", "crossval*")
    shutil.copytree(fold_0["nnUNet_results"] / model, copied["nnUNet_results"] / model, ignore=leave_out)
    return copied


@pytest.fixture
def nnunet_here(monkeypatch, folders, tmp_path):
    """nnU-Net in this process: its variables are set, results go to an empty folder, torch has one thread."""
    import torch

    changed = {**folders, "nnUNet_results": tmp_path / "results", "nnUNet_n_proc_DA": 0, "nnUNet_compile": "f"}
    for name, value in changed.items():
        monkeypatch.setenv(name, str(value))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield changed
    torch.set_num_threads(threads)
