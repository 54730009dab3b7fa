"""Whole images by nnU-Net's windows: what a network computes on patches, averaged with nnU-Net's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_glims.errors import UsageError
from nnunet_glims.export.description import GAUSSIAN_SIGMA_SCALE, GAUSSIAN_VALUE_SCALING, READERS
from nnunet_glims.nnunet.models import ModelFolder

Tell = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class NetworkInput:
    """An image as the network gets it, (channels, z, y, x), and nnU-Net's notes for the way back."""

    data: Tensor
    properties: Mapping[str, Any]


class ImagePipeline:
    """A model's way from an image to its network and back.

    Raises:
        UsageError: the model is the second stage of a cascade, or its images are read in another way than they are stored.
    """

    def __init__(self, model: ModelFolder, device: torch.device):
        self.manager = PlansManager(dict(model.plans))
        self.plan = self.manager.get_configuration(model.configuration)
        self.labels = self.manager.get_label_manager(dict(model.dataset_json))
        self.dataset_json = dict(model.dataset_json)
        if self.plan.previous_stage_name is not None:
            raise UsageError(f"{model.path}: {model.configuration} is the second stage of a cascade: explain the first")
        reader = model.plans["image_reader_writer"]
        if reader not in READERS:
            raise UsageError(f"{model.path / 'plans.json'}: images of {reader} cannot be explained, only {READERS}")
        self.patch_size = tuple(self.plan.patch_size)
        self.device = device
        with redirect_stdout(StringIO()):  # nnU-Net tells that the CPU is no GPU
            self.predictor = nnUNetPredictor(device=device, allow_tqdm=False)
        self.predictor.configuration_manager = self.plan
        with redirect_stdout(StringIO()):
            gaussian = compute_gaussian(
                self.patch_size, GAUSSIAN_SIGMA_SCALE, GAUSSIAN_VALUE_SCALING, device=torch.device("cpu")
            )
        self.gaussian = gaussian.float()

    def preprocess(self, files: Sequence[Path]) -> NetworkInput:
        """Read and preprocess a case."""
        preprocessor = self.plan.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case(
            [str(file) for file in files], None, self.manager, self.plan, self.dataset_json
        )
        return NetworkInput(torch.from_numpy(data).float(), properties)

    def average_windows(
        self, data: Tensor, channels: int, compute: Callable[[Tensor, Tensor], Tensor], tell: Tell = iter
    ) -> Tensor:
        """What `compute` gives for each window, averaged: (channels, z, y, x), on the CPU, of the size of `data`.

        Args:
            data: (…, z, y, x); zero-padded where it is smaller than a patch.
            compute: gets a patch (1, …, z, y, x) on the device and the part (z, y, x) that each of its voxels has in the mean;
                returns (channels, z, y, x).
            tell: iterates over the windows and shows how far it is.
        """
        padded, inside = pad_nd_image(data, self.patch_size, "constant", {"value": 0}, True, None)
        windows = self.predictor._internal_get_sliding_window_slicers(padded.shape[1:])
        total = torch.zeros(padded.shape[1:])
        for window in windows:
            total[window[1:]] += self.gaussian
        found = torch.zeros(channels, *padded.shape[1:])
        for window in tell(windows):
            part = self.gaussian / total[window[1:]]
            found[window] += part * compute(padded[window][None].to(self.device), part.to(self.device)).cpu()
        return found[:, inside[1], inside[2], inside[3]]

    def label_map(self, logits: Tensor, properties: Mapping[str, Any]) -> np.ndarray:
        """Labels (z, y, x) of the whole image, as nnU-Net makes them of logits."""
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, self.manager, self.plan, self.labels, dict(properties)
        )

    def to_image_grid(self, maps: Tensor, properties: Mapping[str, Any]) -> np.ndarray:
        """Maps (n, z, y, x) on the grid of the image: resampled as probabilities are, 0 outside of what was cropped to."""
        size = properties["shape_after_cropping_and_before_resampling"]
        spacing = [properties["spacing"][axis] for axis in self.manager.transpose_forward]
        own = [*spacing[: len(size) - len(self.plan.spacing)], *self.plan.spacing]
        resampled = np.asarray(self.plan.resampling_fn_probabilities(maps, size, own, spacing))
        whole = np.zeros((len(maps), *properties["shape_before_cropping"]), np.float32)
        box = [[0, len(maps)], *properties["bbox_used_for_cropping"]]
        whole = insert_crop_into_image(whole, resampled, box)
        return whole.transpose([0, *(1 + axis for axis in self.manager.transpose_backward)])
