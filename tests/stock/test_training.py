import json
import signal
import subprocess

import numpy as np
import pytest
import torch

from nnunet_glims.architectures import GLIMS as GLIMSNetwork
from nnunet_glims.architectures import LATUPNet
from nnunet_glims.errors import UsageError
from nnunet_glims.nnunet.plans.override import apply_override
from nnunet_glims.trainers.stop_signals import EXIT_STOPPED

from . import (
    CONFIGURATION,
    DATASET,
    LATUPNET,
    NETWORK_ARGUMENTS,
    PLANS,
    call,
    child_environment,
    model_folder,
    tiny_override,
    train,
    training_command,
)


def _weights(checkpoint):
    return torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]


def _plans_named(name, dataset_folder, tmp_path, **training):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(tiny_override("GLIMS", **training)))
    return apply_override(dataset_folder, str(path), overwrite=True).plans_name


@pytest.mark.slow
def test_a_trained_fold_has_all_that_nnunet_leaves_behind(fold_0, dataset_folder):
    fold = model_folder(fold_0) / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file()
    validation_cases = json.loads((dataset_folder / "splits_final.json").read_text())[0]["val"]
    for ending in (".nii.gz", ".npz"):
        assert {path.name for path in (fold / "validation").glob(f"*{ending}")} == {
            f"{case}{ending}" for case in validation_cases
        }
    scores = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(scores["metric_per_case"]) == len(validation_cases)
    assert np.isfinite(scores["foreground_mean"]["Dice"])


@pytest.mark.slow
def test_plans_in_the_model_folder_are_complete(fold_0):
    configuration = json.loads((model_folder(fold_0) / "plans.json").read_text())["configurations"][CONFIGURATION]
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["feature_size"] == NETWORK_ARGUMENTS["GLIMS"]["feature_size"]
    assert arguments["patch_size"] == configuration["patch_size"]
    rebuilt = GLIMSNetwork(4, 3, **arguments).state_dict()
    stored = _weights(model_folder(fold_0) / "fold_0" / "checkpoint_final.pth")
    assert {name: value.shape for name, value in rebuilt.items()} == {
        name: value.shape for name, value in stored.items()
    }
    assert configuration["training"]["epochs"] == 1


@pytest.mark.slow
def test_a_training_stopped_early_goes_on_with_c(folders, dataset_folder, tmp_path):
    results = {**folders, "nnUNet_results": tmp_path / "results"}
    plans = _plans_named("stopped", dataset_folder, tmp_path, epochs=3)
    command = [str(argument) for argument in training_command(0, plans=plans)]
    lines = []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=child_environment(results), **pipes) as process:
        for line in process.stdout:
            lines.append(line)
            if "Epoch 1" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == EXIT_STOPPED, "".join(lines)[-3000:]
    fold = model_folder(results, plans=plans) / "fold_0"
    assert not (fold / "checkpoint_final.pth").exists()

    second = train(0, "--c", plans=plans, **results)
    assert "Epoch 0" not in second
    assert "Epoch 1" in second
    assert "Epoch 2" in second
    assert (fold / "checkpoint_final.pth").is_file()
    assert (fold / "validation" / "summary.json").is_file()


@pytest.mark.slow
def test_c_on_a_finished_fold_only_validates(copied_fold_0):
    fold = model_folder(copied_fold_0) / "fold_0"
    before = _weights(fold / "checkpoint_final.pth")
    (fold / "validation" / "summary.json").unlink()
    output = train(0, "--c", **copied_fold_0)
    after = _weights(fold / "checkpoint_final.pth")
    assert "Epoch" not in output
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (fold / "validation" / "summary.json").is_file()


@pytest.mark.slow
def test_val_repeats_the_validation_of_a_finished_fold(copied_fold_0):
    fold = model_folder(copied_fold_0) / "fold_0"
    checkpoint = (fold / "checkpoint_final.pth").read_bytes()
    before = json.loads((fold / "validation" / "summary.json").read_text())
    for path in (fold / "validation").iterdir():
        path.unlink()
    train(0, "--val", "--npz", **copied_fold_0)
    after = json.loads((fold / "validation" / "summary.json").read_text())
    assert after["foreground_mean"]["Dice"] == pytest.approx(before["foreground_mean"]["Dice"], abs=1e-3)
    assert len(list((fold / "validation").glob("*.npz"))) == len(before["metric_per_case"])
    assert (fold / "checkpoint_final.pth").read_bytes() == checkpoint


@pytest.mark.slow
def test_pretrained_weights_are_where_training_starts(fold_0, dataset_folder, tmp_path):
    plans = _plans_named("standing", dataset_folder, tmp_path, lr=1e-12, iterations_per_epoch=1)
    results = {**fold_0, "nnUNet_results": tmp_path / "results"}
    checkpoint = model_folder(fold_0) / "fold_0" / "checkpoint_final.pth"
    train(1, "-pretrained_weights", checkpoint, plans=plans, **results)
    given = _weights(checkpoint)
    trained = _weights(model_folder(results, plans=plans) / "fold_1" / "checkpoint_final.pth")
    for name, value in given.items():
        if ".seg_layers." not in name:  # nnU-Net starts the heads anew
            torch.testing.assert_close(trained[name], value, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("network", [GLIMSNetwork, LATUPNet])
def test_pretrained_weights_of_a_data_set_with_other_labels_fit_but_for_the_heads(network, tmp_path):
    # nnU-Net transfers all but the segmentation layers, so that the number of labels may differ.
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    arguments = {"patch_size": (32, 32, 32), **NETWORK_ARGUMENTS[network.__name__]}
    pretrained, fresh = network(4, 3, **arguments), network(4, 2, **arguments)
    torch.save({"network_weights": pretrained.state_dict()}, tmp_path / "checkpoint.pth")
    load_pretrained_weights(fresh, str(tmp_path / "checkpoint.pth"))
    given = pretrained.state_dict()
    transferred = {name for name, value in fresh.state_dict().items() if value.shape == given[name].shape}
    assert all(torch.equal(fresh.state_dict()[name], given[name]) for name in transferred)


@pytest.mark.slow
def test_a_2d_configuration_is_refused_naming_the_3d_one(folders):
    with pytest.raises(UsageError, match=f"two-dimensional.*{CONFIGURATION}"):
        call("nnUNetv2_train", DATASET, "2d", "0", "-tr", "nnUNetTrainerGLIMS", "-device", "cpu", **folders)


@pytest.mark.slow
def test_plans_for_another_network_are_refused_naming_its_trainer(folders, latupnet_preprocessed):
    changed = {**folders, "nnUNet_preprocessed": latupnet_preprocessed}
    with pytest.raises(UsageError, match=LATUPNET) as refused:
        train(0, **changed)
    assert PLANS in str(refused.value)
