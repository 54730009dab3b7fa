"""From a release to the first training step of each published setup, by the commands that a user types."""

import json

import pytest

from tests.datasets import releases
from tests.stock import call

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    folders = {name: root / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releases, "SHAPE", (32, 31, 30))  # one patch a case
        brats = releases.write_brats(root / "brats", "2021")
        btcv = releases.write_btcv(root / "btcv")
    call(
        "nnunet-glims", "convert", "brats", brats, "-d", "137", "--channels", "flair,t1ce,t2", "--workers", 1, **folders
    )
    call("nnunet-glims", "convert", "btcv", btcv, "-d", "218", "--workers", 1, **folders)
    plan = ("nnUNetv2_plan_and_preprocess", "-c", "3d_fullres", "--verify_dataset_integrity", "-np", "1", "-npfp", "1")
    call(*plan, "-d", "137", "218", **folders, nnUNet_n_proc_DA=1)
    return folders


@pytest.mark.parametrize(
    ("dataset", "override", "trainer"),
    [
        ("Dataset137_BraTS", "glims_brats", "nnUNetTrainerGLIMS"),
        ("Dataset137_BraTS", "latupnet_paper", "nnUNetTrainerLATUPNet"),
        ("Dataset218_BTCV", "glims_btcv", "nnUNetTrainerGLIMS"),
    ],
)
def test_a_converted_release_trains_as_published(dataset, override, trainer, folders):
    applied = call("nnunet-glims", "plans", "apply", override, "-d", dataset, **folders)
    for line in applied.splitlines():
        if line.strip().startswith("nnUNetv2_preprocess"):
            call(*line.split(), "-np", "1", **folders)
    path = folders["nnUNet_preprocessed"] / dataset / f"nnUNetPlans_{override}.json"
    plans = json.loads(path.read_text())
    # The published patches take minutes on a CPU; everything else stays.
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [32, 32, 32]
    configuration["architecture"]["arch_kwargs"] = {}
    configuration["training"] |= {"epochs": 1, "iterations_per_epoch": 1, "validation_iterations": 1}
    path.write_text(json.dumps(plans))
    command = ("nnUNetv2_train", dataset, "3d_fullres", "0", "-tr", trainer, "-p", f"nnUNetPlans_{override}")
    call(*command, "-device", "cpu", **folders)
    model = folders["nnUNet_results"] / dataset / f"{trainer}__nnUNetPlans_{override}__3d_fullres/fold_0"
    assert (model / "checkpoint_final.pth").exists()
    metrics = json.loads((model / "validation/summary.json").read_text())["mean"]
    assert len(metrics) == (13 if dataset.endswith("BTCV") else 3)
