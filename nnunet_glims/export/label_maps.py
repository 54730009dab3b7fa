"""Turn logits at the model's spacing into a label map of the original image, as nnU-Net does."""

from __future__ import annotations

import numpy as np

from nnunet_glims.export.exported import ExportedModel
from nnunet_glims.export.preprocessing import PreprocessedImage
from nnunet_glims.export.resampling import coarse_axis, resample

Array = np.ndarray


def label_map(logits: Array, preprocessed: PreprocessedImage, model: ExportedModel) -> Array:
    """Return the label map (z, y, x) of the original image.

    One output after the other is resampled, so that at most two of them exist at the resolution of the image.

    Args:
        logits: (outputs, z, y, x) at the model's spacing.
        preprocessed: the image that the logits belong to.
        model: the exported model.
    """
    size = tuple(part.stop - part.start for part in preprocessed.crop)
    axis = coarse_axis(model.resampling_logits, model.spacing, preprocessed.spacing)
    order = model.resampling_logits.order
    labels = np.zeros(size, np.uint16)
    if model.regions_class_order is not None:
        for region, label in zip(logits, model.regions_class_order, strict=True):
            labels[resample(region, size, order, axis) > 0] = label  # the sigmoid is above one half
    else:
        highest = resample(logits[0], size, order, axis)
        for label in range(1, len(logits)):
            candidate = resample(logits[label], size, order, axis)
            labels[candidate > highest] = label
            highest = np.maximum(highest, candidate)
    whole = np.zeros(preprocessed.size, np.uint8 if labels.max(initial=0) < 255 else np.uint16)
    whole[preprocessed.crop] = labels
    return whole.transpose(model.transpose_backward)
