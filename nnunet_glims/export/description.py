"""What a runner must know of nnU-Net's plans, and the plans that it cannot follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_glims.errors import UsageError
from nnunet_glims.export.exported import Normalization, Resampling, SlidingWindow
from nnunet_glims.export.preprocessing import SCHEMES
from nnunet_glims.nnunet.folders import READERS
from nnunet_glims.nnunet.models import ModelFolder

STEP = 0.5
GAUSSIAN_SIGMA_SCALE = 1 / 8
GAUSSIAN_VALUE_SCALING = 10.0
"""Settings of the sliding window, which nnU-Net has in its code, not in its plans; a test compares them."""

RESAMPLING = "resample_data_or_seg_to_shape"


def settings_from_plans(model: ModelFolder, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ExportedModel` that follow from plans, dataset.json and checkpoint.

    Raises:
        UsageError: the runner cannot follow the plans: they are 2D or the second stage of a cascade, or name a
            preprocessor, reader, resampling or normalisation that is not nnU-Net's default.
    """
    from nnunetv2.configuration import ANISO_THRESHOLD

    manager, plan = model.manager, model.settings
    settings = plan.configuration
    known = (
        ("preprocessor_name", settings["preprocessor_name"], ("DefaultPreprocessor",)),
        ("image_reader_writer", model.plans["image_reader_writer"], READERS),
        ("label_manager", model.plans.get("label_manager", "LabelManager"), ("LabelManager",)),
        ("resampling_fn_data", settings["resampling_fn_data"], (RESAMPLING,)),
        ("resampling_fn_probabilities", settings["resampling_fn_probabilities"], (RESAMPLING,)),
        *(("normalization_schemes", scheme, tuple(SCHEMES)) for scheme in plan.normalization_schemes),
    )
    for key, value, choices in known:
        if value not in choices:
            raise UsageError(
                f"{model.path / 'plans.json'}: {key} {value!r} cannot be exported, only {', '.join(choices)}"
            )
    if len(plan.patch_size) != 3:
        raise UsageError(f"{model.path}: {model.configuration} is 2D: only 3D configurations can be exported")
    if plan.previous_stage_name is not None:
        raise UsageError(
            f"{model.path}: {model.configuration} is the second stage of a cascade, which cannot be exported"
        )

    labels = model.labels
    channels = model.dataset_json.get("channel_names") or model.dataset_json["modality"]
    ordered = sorted(channels, key=int)
    properties = manager.foreground_intensity_properties_per_channel
    return {
        "dataset": model.dataset,
        "trainer": model.trainer,
        "plans": manager.plans_name,
        "configuration": model.configuration,
        "licence": _licence(model),
        "channels": [channels[key] for key in ordered],
        "file_ending": model.dataset_json["file_ending"],
        "labels": dict(model.dataset_json["labels"]),
        "regions_class_order": list(labels.regions_class_order) if labels.has_regions else None,
        "outputs": labels.num_segmentation_heads,
        "patch_size": tuple(plan.patch_size),
        "spacing": tuple(plan.spacing),
        "transpose_forward": list(manager.transpose_forward),
        "transpose_backward": list(manager.transpose_backward),
        "normalization": [
            _normalization(plan.normalization_schemes[index], plan.use_mask_for_norm[index], properties.get(key, {}))
            for index, key in enumerate(ordered)
        ],
        "resampling_image": _resampling(settings["resampling_fn_data_kwargs"], ANISO_THRESHOLD),
        "resampling_logits": _resampling(settings["resampling_fn_probabilities_kwargs"], ANISO_THRESHOLD),
        "sliding_window": SlidingWindow(
            step=STEP,
            gaussian_sigma_scale=GAUSSIAN_SIGMA_SCALE,
            gaussian_value_scaling=GAUSSIAN_VALUE_SCALING,
            mirror_axes=tuple(checkpoint.get("inference_allowed_mirroring_axes") or ()),
        ),
    }


def _normalization(scheme: Any, use_mask: bool, properties: Mapping[str, float]) -> Normalization:
    if scheme != "CTNormalization":
        return Normalization(scheme=scheme, use_mask=use_mask)
    needed = ("mean", "std", "percentile_00_5", "percentile_99_5")
    return Normalization(scheme=scheme, use_mask=use_mask, **{name: float(properties[name]) for name in needed})


def _resampling(settings: Mapping[str, Any], threshold: float) -> Resampling:
    """Return the arguments of nnU-Net's resampling function; what plans leave out has that function's defaults."""
    if settings.get("order_z", 0) != 0:
        raise UsageError(f"plans.json: resampling with order_z {settings['order_z']} cannot be exported, only 0")
    return Resampling(
        order=settings.get("order", 3),
        force_separate_z=settings.get("force_separate_z", False),
        anisotropy_threshold=settings.get("separate_z_anisotropy_threshold", threshold),
    )


def _licence(model: ModelFolder) -> str:
    from nnunet_glims.networks import network_of_trainer

    name = model.plans["configurations"][model.configuration].get("architecture", {}).get("network_class_name", "")
    ours = network_of_trainer(model.trainer)
    network = f"nnunet-glims, Apache-2.0 ({ours.licence})" if ours else name or "nnU-Net"
    stated = model.dataset_json.get("licence") or model.dataset_json.get("license")
    data = f"the data's licence, {stated}," if stated else f"the licence of the data ({model.dataset})"
    return f"Weights: {data} applies to what was trained on it. Network: {network}."
