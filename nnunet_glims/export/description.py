"""What a runner must know of nnU-Net's plans, and the plans that it cannot follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.export.exported import ModelSettings
from nnunet_glims.export.preprocessing import SCHEMES
from nnunet_glims.nnunet.folders import READERS
from nnunet_glims.nnunet.models import PLANS_JSON, ModelFolder
from nnunet_glims.validation import validate

STEP = 0.5
GAUSSIAN_SIGMA_SCALE = 1 / 8
GAUSSIAN_VALUE_SCALING = 10.0
"""Settings of the sliding window, which nnU-Net has in its code, not in its plans; a test compares them."""

RESAMPLING = "resample_data_or_seg_to_shape"


def settings_from_plans(model: ModelFolder, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelSettings`, which follow from plans, dataset.json and checkpoint.

    Raises:
        ProcessingError: plans, dataset.json and checkpoint do not describe a model.
        UsageError: the runner cannot follow the plans: they are 2D or the second stage of a cascade, or name a
            preprocessor, reader, resampling or normalisation that is not nnU-Net's default.
    """
    from nnunetv2.configuration import ANISO_THRESHOLD

    manager, plan = model.manager, model.settings
    settings = plan.configuration
    where = model.path / PLANS_JSON
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
            raise UsageError(f"{where}: {key} {value!r} cannot be exported, only {', '.join(choices)}")
    if len(plan.patch_size) != 3:
        raise UsageError(f"{model.path}: {model.configuration} is 2D: only 3D configurations can be exported")
    if plan.previous_stage_name is not None:
        raise UsageError(
            f"{model.path}: {model.configuration} is the second stage of a cascade, which cannot be exported"
        )

    labels = model.labels
    properties = model.plans.get("foreground_intensity_properties_per_channel") or {}
    found = {
        "dataset": model.dataset,
        "trainer": model.trainer,
        "plans": manager.plans_name,
        "configuration": model.configuration,
        "licence": _licence(model),
        "channels": model.channels,
        "file_ending": model.dataset_json["file_ending"],
        "labels": dict(model.dataset_json["labels"]),
        "regions_class_order": list(labels.regions_class_order) if labels.has_regions else None,
        "outputs": labels.num_segmentation_heads,
        "patch_size": tuple(plan.patch_size),
        "spacing": tuple(plan.spacing),
        "transpose_forward": list(manager.transpose_forward),
        "transpose_backward": list(manager.transpose_backward),
        "normalization": [
            _normalization(
                plan.normalization_schemes[index], plan.use_mask_for_norm[index], properties.get(str(index), {})
            )
            for index in range(len(model.channels))
        ],
        "resampling_image": _resampling(settings["resampling_fn_data_kwargs"], ANISO_THRESHOLD, where),
        "resampling_logits": _resampling(settings["resampling_fn_probabilities_kwargs"], ANISO_THRESHOLD, where),
        "sliding_window": {
            "step": STEP,
            "gaussian_sigma_scale": GAUSSIAN_SIGMA_SCALE,
            "gaussian_value_scaling": GAUSSIAN_VALUE_SCALING,
            "mirror_axes": list(checkpoint.get("inference_allowed_mirroring_axes") or ()),
        },
    }
    return dict(validate(ModelSettings, found, str(where), error=ProcessingError))


def _normalization(scheme: str, use_mask: bool, properties: Mapping[str, float]) -> dict[str, Any]:
    needed = ("mean", "std", "percentile_00_5", "percentile_99_5") if scheme == "CTNormalization" else ()
    return {"scheme": scheme, "use_mask": use_mask, **{name: properties.get(name) for name in needed}}


def _resampling(settings: Mapping[str, Any], threshold: float, where: Path) -> dict[str, Any]:
    """Return the arguments of nnU-Net's resampling function; what plans leave out has that function's defaults."""
    if settings.get("order_z", 0) != 0:
        raise UsageError(f"{where}: resampling with order_z {settings['order_z']} cannot be exported, only 0")
    return {
        "order": settings.get("order", 3),
        "force_separate_z": settings.get("force_separate_z", False),
        "anisotropy_threshold": settings.get("separate_z_anisotropy_threshold", threshold),
    }


def _licence(model: ModelFolder) -> str:
    from nnunet_glims.networks import network_of_trainer

    name = model.settings.network_arch_class_name
    ours = network_of_trainer(model.trainer)
    network = f"nnunet-glims, Apache-2.0 ({ours.licence})" if ours else name
    stated = model.dataset_json.get("licence") or model.dataset_json.get("license")
    data = f"the data's licence, {stated}," if stated else f"the licence of the data ({model.dataset})"
    return f"Weights: {data} applies to what was trained on it. Network: {network}."
