"""Make a model folder from the published weights of GLIMS' authors, with which unmodified nnU-Net predicts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import check_output_folder, new_folder, read_json, write_bytes, write_json
from nnunet_glims.networks import trained_by
from nnunet_glims.nnunet.plans.configuration import complete_configuration
from nnunet_glims.nnunet.plans.override import load_override
from nnunet_glims.releases import brats

TRAINER = "nnUNetTrainerGLIMSReleased"
PLANS = "nnUNetPlans_glims_released_brats"
CONFIGURATION = "3d_fullres"
CHANNELS = tuple(brats.CHANNELS[name] for name in ("flair", "t1ce", "t1", "t2"))
"""Channels in the authors' order."""
AUTHORS_HEADS = ("tumor_core", "whole_tumor", "enhancing_tumor")
_FIRST_KEY = "stem.conv.weight"
_REGIONS = tuple(brats.REGIONS)


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read parameters under the released names, from a checkpoint with `state_dict` in it or from a bare state dict.

    A prefix that a wrapper put in front of every name (`module.`, `backbone.`) is removed. Only tensors are loaded, no code.

    Raises:
        UsageError: the file is missing, holds more than data, or has no parameters of GLIMS.
        ProcessingError: the file is damaged, is no PyTorch file, or holds weights that are not finite.
    """
    import torch

    from nnunet_glims.nnunet.checkpoints import not_finite, read_pickle

    content = read_pickle(
        path,
        "save its parameters alone, and import that file: python -c "
        f"\"import torch; torch.save(torch.load('{path}', 'cpu', weights_only=False)['state_dict'], 'weights.pt')\"",
    )
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UsageError(f"{path}: holds neither a state dict nor a dict with one as 'state_dict'")
    if bad := not_finite(state):
        raise ProcessingError(
            f"{path}: the weights are not finite ({bad}): this training has diverged. Give another file"
        )
    prefixes = [name.removesuffix(_FIRST_KEY) for name in state if name.endswith(_FIRST_KEY)]
    if len(prefixes) != 1:
        raise UsageError(
            f"{path}: has {len(prefixes)} parameters named {_FIRST_KEY}; GLIMS has one. Are these the released weights?"
        )
    return {name.removeprefix(prefixes[0]): value for name, value in state.items()}


def import_released(weights: Path, folder: Path, fold: int = 0) -> int:
    """Write nnU-Net's model folder, or add a fold to a folder that this function wrote.

    nnU-Net paints regions in the order of the outputs. In the authors' order TC, WT, ET it would paint WT over TC, so the
    outputs are put in the order WT, TC, ET. Nothing else in the network changes.

    Args:
        weights: the authors' checkpoint.
        folder: the model folder to make; nnU-Net names such folders TRAINER__PLANS__CONFIGURATION.
        fold: number of the fold to write these weights to.

    Returns:
        The network's width.

    Raises:
        UsageError: the file is refused (see `read_state_dict`), its parameters are not those of GLIMS for 4 channels and 3
            regions, or the folder exists with other content.
        ProcessingError: the folder cannot be written.
    """
    import torch

    from nnunet_glims.architectures import GLIMS
    from nnunet_glims.nnunet.checkpoints import FINAL

    if fold < 0:
        raise UsageError(f"--fold {fold}: it must be 0 or more")
    check_output_folder(folder)
    network = GLIMS.from_released_state_dict(read_state_dict(weights))
    state = network.state_dict()
    width, channels = state["encoder.stem.conv.weight"].shape[:2]
    classes = len(state["decoder.seg_layers.0.weight"])
    if (channels, classes) != (len(CHANNELS), len(AUTHORS_HEADS)):
        raise UsageError(
            f"{weights}: made for {channels} channels and {classes} outputs, not for the {len(CHANNELS)} channels and "
            f"{len(AUTHORS_HEADS)} regions of the authors' BraTS model"
        )
    order = [AUTHORS_HEADS.index(region) for region in _REGIONS]
    for name in state:
        if name.startswith("decoder.seg_layers."):
            state[name] = state[name][order]
    files = {"plans.json": plans(int(width)), "dataset.json": dataset_json()}
    _check_target(folder, files, fold)
    checkpoint = {
        "network_weights": {name: value.contiguous().clone() for name, value in state.items()},
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": None,
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {"configuration": CONFIGURATION, "fold": fold},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": None,  # the authors do not use mirroring in prediction
    }
    content = io.BytesIO()
    torch.save(checkpoint, content)
    name_of_fold = f"fold_{fold}"
    if folder.exists():
        with new_folder(folder / name_of_fold) as inside:
            write_bytes(inside / FINAL, content.getvalue())
    else:
        with new_folder(folder) as unfinished:
            (unfinished / name_of_fold).mkdir()
            write_bytes(unfinished / name_of_fold / FINAL, content.getvalue())
            for name, described in files.items():
                write_json(unfinished / name, described)
    return int(width)


def _check_target(folder: Path, files: Mapping[str, Any], fold: int) -> None:
    if not folder.exists():
        return
    for name, content in files.items():
        if not (folder / name).is_file() or read_json(folder / name) != content:
            raise UsageError(f"{folder}: is there already, and is no folder of such weights: choose another one")
    if (folder / f"fold_{fold}").exists():
        raise UsageError(f"{folder}: has fold_{fold} already: give these weights another number with --fold")


def dataset_json() -> dict[str, Any]:
    """Return dataset.json: channels in the authors' order, labels and regions as `nnunet-glims convert brats` writes them."""
    return {
        "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
        "labels": dict(brats.LABELS),
        "regions_class_order": list(brats.REGIONS_CLASS_ORDER),
        "numTraining": brats.RELEASES["2021"].training_cases,
        "file_ending": ".nii.gz",
        "name": "BraTS",
    }


def plans(width: int) -> dict[str, Any]:
    """Return nnU-Net's plans for the released model: 96³ patches of 1 mm voxels, z-scores over non-zero voxels."""
    _, override = load_override("glims_released_brats")
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    labels_resampling = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    probabilities_resampling = {**resampling, "order": 1}
    network, arguments = trained_by(TRAINER)
    configuration = {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": override.batch_size,
        "patch_size": override.patch_size,
        "median_image_size_in_voxels": [140.0, 171.0, 136.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * len(CHANNELS),
        "use_mask_for_norm": [True] * len(CHANNELS),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": labels_resampling,
        "resampling_fn_probabilities_kwargs": probabilities_resampling,
        "batch_dice": False,
        "architecture": {
            "network_class_name": network.path,
            "arch_kwargs": {**override.network_arguments, "feature_size": width},
        },
        "training": override.training,
    }
    return {
        "dataset_name": "Dataset000_BraTS",
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [155, 240, 240],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: complete_configuration(configuration, network, arguments, PLANS)},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(len(CHANNELS))},
    }
