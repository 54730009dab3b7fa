"""Combine what a network computes on patches to volumes: nnU-Net's preprocessing, windows, Gaussian weights and resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.export.description import GAUSSIAN_SIGMA_SCALE, GAUSSIAN_VALUE_SCALING
from nnunet_glims.geometry import times
from nnunet_glims.images import not_finite
from nnunet_glims.nnunet.folders import READERS
from nnunet_glims.nnunet.models import PLANS_JSON, ModelFolder
from nnunet_glims.nnunet.trust import check_image_processing
from nnunet_glims.processes import Progress, quietly


@dataclass(frozen=True)
class NetworkInput:
    """A preprocessed image.

    Attributes:
        data: (channels, z, y, x), float32.
        properties: nnU-Net's description of the original image, which is needed to return to its grid.
    """

    data: Tensor
    properties: Mapping[str, Any]


class ImagePipeline:
    """Preprocessing, windows and resampling of a trained model.

    Args:
        model: the model's folder.
        device: where patches are computed.

    Raises:
        UsageError: the model is the second stage of a cascade, or its reader changes the order of the axes.
    """

    def __init__(self, model: ModelFolder, device: torch.device):
        self.manager, self.plan, self.labels = model.manager, model.settings, model.labels
        check_image_processing(self.plan, str(model.path / PLANS_JSON))
        self.dataset_json = dict(model.dataset_json)
        if self.plan.previous_stage_name is not None:
            raise UsageError(f"{model.path}: {model.configuration} is the second stage of a cascade: explain the first")
        reader = model.plans["image_reader_writer"]
        if reader not in READERS:
            raise UsageError(
                f"{model.path / 'plans.json'}: images of {reader} cannot be explained, only those of {' and '.join(READERS)}"
            )
        self.patch_size = tuple(self.plan.patch_size)
        self.device = device
        with redirect_stdout(StringIO()):  # nnU-Net prints that there is no GPU
            self.predictor = nnUNetPredictor(device=device, allow_tqdm=False)
        self.predictor.configuration_manager = self.plan
        with redirect_stdout(StringIO()):
            gaussian = compute_gaussian(
                self.patch_size, GAUSSIAN_SIGMA_SCALE, GAUSSIAN_VALUE_SCALING, device=torch.device("cpu")
            )
        self.gaussian = gaussian.float()

    def preprocess(self, files: Sequence[Path]) -> NetworkInput:
        """Read the channel files of a case and preprocess them.

        Raises:
            ProcessingError: nnU-Net cannot preprocess the image, for example because it would become too large.
        """
        preprocessor = self.plan.preprocessor_class(verbose=False)
        try:
            data, _, properties = preprocessor.run_case(
                [str(file) for file in files], None, self.manager, self.plan, self.dataset_json
            )
        except (MemoryError, RuntimeError, ValueError) as error:
            raise ProcessingError(
                f"{files[0]}: nnU-Net cannot preprocess this image to {times(self.plan.spacing)} mm, the spacing of the plans: "
                f"{error}"
            ) from None
        return NetworkInput(torch.from_numpy(data).float(), properties)

    def average_windows(
        self,
        data: Tensor,
        channels: int,
        compute: Callable[[Tensor, Tensor], Tensor],
        progress: Progress = quietly,
        title: str = "",
    ) -> Tensor:
        """Return the Gaussian-weighted mean over windows of what `compute` returns, (channels, z, y, x), on the CPU.

        Args:
            data: (…, z, y, x); it is zero-padded where it is smaller than the patch. The result has its size.
            channels: number of channels that `compute` returns.
            compute: takes a patch (1, …, z, y, x) on the device, and the share (z, y, x) from 0 to 1 that each of its
                voxels has in the average; returns (channels, z, y, x).
            progress: shows how many windows are done.
            title: what `progress` says is being done.

        Raises:
            ProcessingError: `compute` returned NaN or infinity.
        """
        padded, inside = pad_nd_image(data, self.patch_size, "constant", {"value": 0}, True, None)
        windows = self.predictor._internal_get_sliding_window_slicers(padded.shape[1:])
        total = torch.zeros(padded.shape[1:])
        for window in windows:
            total[window[1:]] += self.gaussian
        found = torch.zeros(channels, *padded.shape[1:])
        for window in progress(windows, title, len(windows)):
            share = self.gaussian / total[window[1:]]
            found[window] += share * compute(padded[window][None].to(self.device), share.to(self.device)).cpu()
        if not found.isfinite().all():
            raise ProcessingError(
                f"{title}: the network computes {not_finite(found.numpy())}: are its weights damaged?"
            )
        return found[:, inside[1], inside[2], inside[3]]

    def label_map(self, logits: Tensor, properties: Mapping[str, Any]) -> np.ndarray:
        """Return the label map (z, y, x) of the original image that nnU-Net makes of logits (outputs, z, y, x)."""
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, self.manager, self.plan, self.labels, dict(properties)
        )

    def to_image_grid(self, maps: Tensor, properties: Mapping[str, Any]) -> np.ndarray:
        """Return maps (n, z, y, x) on the grid of the original image, resampled as nnU-Net resamples probabilities.

        Voxels that preprocessing cropped away are 0.
        """
        size = properties["shape_after_cropping_and_before_resampling"]
        spacing = [properties["spacing"][axis] for axis in self.manager.transpose_forward]
        own = [*spacing[: len(size) - len(self.plan.spacing)], *self.plan.spacing]
        resampled = np.asarray(self.plan.resampling_fn_probabilities(maps, size, own, spacing))
        whole = np.zeros((len(maps), *properties["shape_before_cropping"]), np.float32)
        box = [[0, len(maps)], *properties["bbox_used_for_cropping"]]
        whole = insert_crop_into_image(whole, resampled, box)
        return whole.transpose([0, *(1 + axis for axis in self.manager.transpose_backward)])
