import json

import numpy as np
import pytest
import torch

from nnunet_glims.networks import BUILT_IN
from nnunet_glims.nnunet.plans.override import apply_override
from nnunet_glims.training.recipes import Recipe

from . import CONFIGURATION, DATASET, predict, probabilities, segmentation, tiny_override

pytestmark = pytest.mark.slow


def _trainer(trainer_name, plans_name):
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args(DATASET, CONFIGURATION, 0, trainer_name, plans_name, device=torch.device("cpu"))


@pytest.mark.parametrize("network", BUILT_IN, ids=lambda network: network.name)
def test_stock_plans_are_trained_and_leave_complete_plans(network, nnunet_here, dataset_folder):
    if network.name == "SwinUNETR":
        pytest.importorskip("monai")
    planned = json.loads((dataset_folder / "nnUNetPlans.json").read_text())["configurations"][CONFIGURATION]
    trainer = _trainer(network.trainer, "nnUNetPlans")
    trainer.on_train_start()
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    trainer.network.train()
    step = trainer.train_step(next(trainer.dataloader_train))
    assert np.isfinite(step["loss"])
    moved = [not torch.equal(old, new) for old, new in zip(before, trainer.network.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2

    (plans_path,) = nnunet_here["nnUNet_results"].rglob("plans.json")
    written = json.loads(plans_path.read_text())["configurations"][CONFIGURATION]
    assert written["patch_size"] == planned["patch_size"]
    assert written["architecture"]["network_class_name"] == network.path
    assert written["architecture"]["arch_kwargs"]["patch_size"] == planned["patch_size"]
    assert ("strides" in written["architecture"]["arch_kwargs"]) == (network.stages is not None)
    assert written["training"] == network.recipe.model_dump()
    assert set(written["training"]) == set(Recipe.model_fields)


@pytest.mark.parametrize("network", ["GLIMS", "LATUPNet"])
def test_nnunets_own_trainer_runs_our_network(network, nnunet_here, folders, dataset_folder, tmp_path):
    path = tmp_path / f"own_trainer_{network}.json"
    path.write_text(json.dumps(tiny_override(network)))
    plans = apply_override(dataset_folder, str(path), overwrite=True).plans_name
    trainer = _trainer("nnUNetTrainer", plans)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()

    results = {**folders, "nnUNet_results": nnunet_here["nnUNet_results"]}
    output = predict(tmp_path / "prediction", trainer="nnUNetTrainer", plans=plans, **results)
    assert probabilities(output).shape == (3, *segmentation(output).T.shape)
    assert probabilities(output).std() > 0
