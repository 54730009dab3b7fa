"""Model folders of untrained tiny networks, and images to predict."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_glims.export.description import settings_from_plans
from nnunet_glims.export.exported import ExportedModel
from nnunet_glims.nnunet.models import ModelFolder
from tests.preprocessed import dataset_json, make_plans

PLAIN = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [6, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
INTENSITIES = {
    str(channel): {"mean": 1.0, "std": 2.0, "percentile_00_5": -2.0, "percentile_99_5": 4.0} for channel in (0, 1)
}


def write_model_folder(
    root: Path, network: str | None = None, folds=("0",), regions: bool = False, transpose=(0, 1, 2), **settings
) -> Path:
    """A model folder with random weights, for two channels.

    network: a class of ours; None for nnU-Net's own U-Net.
    settings: of the configuration in the plans, to change.
    """
    plans = make_plans(network, patch_size=(32, 32, 32) if network else (16, 16, 16), warmup_epochs=0)
    configuration = plans["configurations"]["3d_fullres"]
    if network is None:
        configuration["architecture"] = PLAIN
    for what in ("data", "probabilities"):
        order = 3 if what == "data" else 1
        configuration[f"resampling_fn_{what}_kwargs"] |= {"order": order}
    configuration |= settings
    plans["configurations"] = {"3d_fullres": configuration}
    plans["transpose_forward"] = list(transpose)
    plans["transpose_backward"] = [int(axis) for axis in np.argsort(transpose)]
    plans["foreground_intensity_properties_per_channel"] = INTENSITIES
    trainer = f"nnUNetTrainer{network or ''}"
    folder = root / f"{trainer}__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(regions)))
    for fold in folds:
        torch.manual_seed(7 + sum(map(ord, fold)))
        built = ModelFolder(folder).network()[0]
        with torch.no_grad():  # untrained norms and biases would hide mistakes with them
            for weight in built.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": built.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
            "logging": {"train_losses": [np.float32(1.0), np.float64(0.5)]},
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def description(folder: Path, mirror_axes=(0, 1, 2)) -> ExportedModel:
    """What an export of the folder would hold, without a file a fold."""
    return ExportedModel(
        format="onnx",
        precision="fp32",
        opset=18,
        versions={},
        folds=[],
        **settings_from_plans(ModelFolder(folder), {"inference_allowed_mirroring_axes": mirror_axes}),
    )


def head(size=(24, 20, 22), seed: int = 0) -> np.ndarray:
    """Two channels (2, z, y, x) that are zero around an ellipsoid, and at a hole within it."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
    radius = sum(axis**2 for axis in grid)
    image = (rng.normal(size=(2, *size)) + 3 * (radius < 0.3) + 1).astype(np.float32)
    image[:, radius > 0.8] = 0
    image[:, radius < 0.01] = 0
    return image


def write_case(folder: Path, name: str, image: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> list[Path]:
    """Channel files of an image (channels, z, y, x) on an oblique grid; spacing along x, y, z."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for channel, array in enumerate(image):
        stored = sitk.GetImageFromArray(array)
        stored.SetSpacing(spacing)
        stored.SetOrigin((-10.0, 5.0, 2.5))
        stored.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
        files.append(folder / f"{name}_{channel:04d}.nii.gz")
        sitk.WriteImage(stored, str(files[-1]))
    return files
