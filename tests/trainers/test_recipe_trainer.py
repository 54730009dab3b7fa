import json
from pathlib import Path

import pytest
import torch

from nnunet_glims.architectures import GLIMS, LATUPNet
from nnunet_glims.errors import UsageError
from nnunet_glims.trainers import (
    nnUNetTrainerGLIMS,
    nnUNetTrainerGLIMSReleased,
    nnUNetTrainerLATUPNet,
    recipe_trainer,
)
from tests.preprocessed import dataset_json, make_plans


def test_stock_plans_get_the_network_for_their_patch_and_spacing(make_trainer):
    plans = make_plans(patch_size=(32, 64, 64))
    plans["configurations"]["3d_fullres"]["spacing"] = [4.0, 1.0, 1.0]
    trainer = make_trainer(plans=plans, trainer=nnUNetTrainerGLIMS)
    trainer.initialize()
    network = trainer.bare_network
    assert type(network) is GLIMS
    assert network.patch_size == (32, 64, 64)
    assert network.strides[1:3] == [(1, 2, 2), (1, 2, 2)]
    assert trainer._get_deep_supervision_scales() == [[1, 1, 1], [1, 0.5, 0.5], [1, 0.25, 0.25], [0.5, 0.125, 0.125]]


def test_targets_meet_the_heads_of_the_network(make_trainer):
    trainer = make_trainer("GLIMS")
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    outputs = trainer.network(batch["data"])
    assert [tuple(t.shape[2:]) for t in batch["target"]] == [tuple(o.shape[2:]) for o in outputs]


def test_a_training_leaves_complete_plans_and_a_model_that_predicts(make_trainer, nnunet_folders):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = make_trainer("GLIMS", epochs=1, iterations_per_epoch=1)
    trainer.run_training()
    folder = trainer.output_folder_base
    configuration = json.loads(Path(folder, "plans.json").read_text())["configurations"]["3d_fullres"]
    assert configuration["architecture"]["network_class_name"] == "nnunet_glims.architectures.GLIMS"
    assert configuration["architecture"]["arch_kwargs"]["strides"][0] == [1, 1, 1]
    assert configuration["training"]["optimizer"] == "AdamW"
    assert configuration["training"]["epochs"] == 1
    assert "Recipe: epochs=1" in Path(trainer.log_file).read_text()

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(folder, (0,))
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    image = torch.randn(1, 2, 32, 32, 32)
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    predictor.network.eval()
    with torch.no_grad():
        assert torch.equal(predictor.network(image), trainer.network(image))


def test_two_dimensional_configurations_are_refused_with_the_three_dimensional_ones_named(make_trainer):
    with pytest.raises(UsageError, match="'2d' is two-dimensional.*3d_fullres"):
        make_trainer(configuration="2d")


def test_plans_of_another_network_name_the_trainer_to_use(make_trainer):
    with pytest.raises(UsageError, match="made for LATUPNet.*-tr nnUNetTrainerLATUPNet"):
        make_trainer(plans=make_plans("LATUPNet"), trainer=nnUNetTrainerGLIMS)


def test_the_released_trainer_insists_on_its_patch(make_trainer):
    trainer = make_trainer(plans=make_plans(), trainer=nnUNetTrainerGLIMSReleased)
    with pytest.raises(UsageError, match=r"\[32, 32, 32\].*glims_released_brats"):
        trainer.initialize()


def test_plans_that_contradict_the_trainer_or_themselves_are_refused(make_trainer):
    plans = make_plans("GLIMS")
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = {"patch_size": [96, 96, 96]}
    with pytest.raises(UsageError, match=r"patch_size is \[96, 96, 96\].*ask for \[32, 32, 32\]"):
        make_trainer(plans=plans, trainer=nnUNetTrainerGLIMS)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = {"released": False}
    with pytest.raises(UsageError, match="released is False.*ask for True"):
        make_trainer(plans=plans, trainer=nnUNetTrainerGLIMSReleased)


def test_a_misspelt_setting_is_refused_with_the_nearest_name(make_trainer):
    with pytest.raises(UsageError, match="training: epoch: unknown key; did you mean 'epochs'"):
        make_trainer(epoch=3)


def test_recipe_settings_arrive_in_the_trainer(make_trainer):
    trainer = make_trainer(
        "GLIMS", epochs=7, iterations_per_epoch=3, validation_iterations=4, optimizer="SGD", lr=0.5, momentum=0.9,
        schedule="poly", warmup_epochs=2, gradient_clip=None, checkpoint_interval=5, deep_supervision=False,
    )  # fmt: skip
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (7, 3, 4)
    assert (trainer.save_every, trainer.gradient_clip) == (5, None)
    assert type(trainer.optimizer).__name__ == "SGD"
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.9
    trainer.lr_scheduler.step(0)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.25
    trainer.lr_scheduler.step(3)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * (1 - 1 / 5) ** 0.9)
    assert isinstance(trainer.network(torch.randn(1, 2, 32, 32, 32)), torch.Tensor)
    assert trainer._get_deep_supervision_scales() is None


def test_latupnets_penalty_falls_on_the_selected_kernels_alone(make_trainer):
    trainer = make_trainer("LATUPNet")
    trainer.initialize()
    penalised, rest = trainer.optimizer.param_groups
    assert (penalised["weight_decay"], rest["weight_decay"]) == (0.04, 0)
    assert type(trainer.optimizer).__name__ == "Adam"
    assert len(penalised["params"]) == len(trainer.bare_network.selected_decay_parameters())
    # Coupled decay of 0.04 w is the gradient of 0.02 w²: with a zero loss gradient Adam moves w by lr against its sign.
    weight = penalised["params"][0]
    before = weight.detach().clone()
    for parameter in trainer.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    clear = before.abs() > 1e-3
    assert torch.allclose(weight[clear], (before - trainer.initial_lr * before.sign())[clear], atol=1e-6)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("loss", ["nnunet", "glims", "latupnet"])
def test_every_loss_trains_labels_and_regions_with_and_without_deep_supervision(make_trainer, loss, regions):
    for deep_supervision in (True, False):
        trainer = make_trainer(
            regions=regions,
            loss=loss,
            deep_supervision=deep_supervision,
            epochs=3,
            iterations_per_epoch=4,
            lr=0.01,
            seed=1,
        )
        trainer.disable_checkpointing = True
        trainer.run_training()
        assert trainer.skipped_steps == 0
        losses = trainer.logger.get_value("train_losses", None)
        assert losses[-1] < losses[0]


def test_region_weights_add_up_for_labels_and_stand_alone_for_regions(make_trainer):
    weights = [{"labels": [1, 2], "weight": 1.5}, {"labels": [2], "weight": 2.0}]
    assert make_trainer(loss="latupnet", region_weights=weights)._foreground_weights() == [1.5, 3.5]
    assert make_trainer(loss="latupnet", region_weights=weights, regions=True)._foreground_weights() == [1.5, 2.0]
    with pytest.raises(UsageError, match=r"no weight for label \[1\]"):
        make_trainer(loss="latupnet", region_weights=weights[1:])._foreground_weights()


@pytest.mark.parametrize(("augmentation", "axes"), [("nnunet", (0, 1, 2)), ("mirror", (0, 1, 2)), ("none", None)])
def test_prediction_mirrors_only_what_training_mirrored(make_trainer, augmentation, axes):
    trainer = make_trainer(augmentation=augmentation)
    trainer.on_train_start()
    assert trainer.inference_allowed_mirroring_axes == axes
    assert next(trainer.dataloader_train)["data"].shape == (2, 2, 16, 16, 16)


def test_mirroring_alone_changes_no_voxel_value(make_trainer):
    plain, mirrored = (make_trainer(augmentation=kind) for kind in ("none", "mirror"))
    for trainer in (plain, mirrored):
        trainer.on_train_start()
    transforms = mirrored.dataloader_train.data_loader.transforms
    image = torch.arange(2 * 16**3, dtype=torch.float32).view(2, 16, 16, 16)
    out = {
        tuple(transforms(image=image.clone(), segmentation=torch.zeros(1, 16, 16, 16))["image"][0, 0, 0, :2].tolist())
        for _ in range(60)
    }
    assert len(out) == 8  # every combination of three mirrored axes


@pytest.mark.parametrize(("planned", "variable", "used"), [("bf16", None, "bf16"), ("fp32", "bf16", "bf16")])
def test_the_precision_of_plans_or_variable_reaches_training_and_prediction(
    make_trainer, monkeypatch, capsys, planned, variable, used
):
    if variable is not None:
        monkeypatch.setenv("NNUNET_GLIMS_PRECISION", variable)
    trainer = make_trainer(precision=planned)
    trainer.initialize()
    assert trainer.bare_network.precision == used
    assert trainer.grad_scaler is None
    assert f"Precision: {used} on cpu" in Path(trainer.log_file).read_text()
    network = nnUNetTrainerLATUPNet.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 2, 3, enable_deep_supervision=False
    )
    assert type(network) is LATUPNet
    assert network.precision == used
    recipe_trainer._say.cache_clear()
    capsys.readouterr()
    with torch.no_grad():
        for _ in range(2):
            network.eval()(torch.zeros(1, 2, 16, 16, 16))
    assert capsys.readouterr().out.count(f"Predicting in {used} on cpu") == 1


def test_a_wrong_variable_is_refused_before_anything_is_written(make_trainer, nnunet_folders, monkeypatch):
    monkeypatch.setenv("NNUNET_GLIMS_PRECISION", "half")
    with pytest.raises(UsageError, match="NNUNET_GLIMS_PRECISION=half is unknown: choose auto, fp32, bf16 or fp16"):
        make_trainer()
    assert not (nnunet_folders / "results").exists()


def test_a_trainer_can_be_built_from_plans_without_nnunets_internal_key(nnunet_folders):
    plans = make_plans("LATUPNet")
    nnUNetTrainerLATUPNet(plans, "3d_fullres", 0, dataset_json(), torch.device("cpu"))
    assert "continue_training" not in plans


ends_a_thread = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
"""batchgenerators' own end of its processes, while they load batches that nobody takes, may fail in its thread."""


def first_batches(trainer, count=3):
    trainer.on_train_start()
    batches = [next(trainer.dataloader_train)["data"].clone() for _ in range(count)]
    trainer._data_loading.finish()
    return batches


@ends_a_thread
@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_seed_gives_the_same_network_and_the_same_batches(make_trainer, monkeypatch, processes):
    monkeypatch.setenv("nnUNet_n_proc_DA", processes)
    trainers = [make_trainer(seed=seed) for seed in (7, 7, 8)]
    batches = [first_batches(trainer) for trainer in trainers]
    weights = [next(trainer.network.parameters()) for trainer in trainers]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert all(torch.equal(*pair) for pair in zip(batches[0], batches[1]))
    assert not torch.equal(batches[0][0], batches[2][0])


def test_a_resumed_training_does_not_see_its_first_batches_again(make_trainer):
    fresh, resumed = make_trainer(seed=7), make_trainer(seed=7)
    resumed.initialize()
    resumed.current_epoch = 1
    assert not torch.equal(first_batches(fresh, 1)[0], first_batches(resumed, 1)[0])


@ends_a_thread
def test_data_loading_processes_have_seeds_of_their_own(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer(seed=7)
    trainer.initialize()
    loaders = trainer.get_dataloaders()
    seeds = [seed for loader in loaders for seed in loader.seeds]
    for loader in loaders:
        loader._finish()
    assert len(seeds) == sum(loader.num_processes for loader in loaders) > 1
    assert None not in seeds and len(set(seeds)) == len(seeds)
