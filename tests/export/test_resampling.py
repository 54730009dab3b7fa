"""Against nnU-Net's own resampling."""

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)

from nnunet_glims.export.exported import Resampling
from nnunet_glims.export.resampling import coarse_axis, new_size, resample

SPACINGS = [
    ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ((1.0, 1.2, 0.8), (1.0, 1.0, 1.0)),
    ((5.0, 0.9, 1.1), (2.5, 1.0, 1.0)),
    ((5.0, 1.0, 1.0), (5.0, 1.5, 1.5)),
    ((1.0, 6.0, 1.1), (1.2, 3.1, 1.0)),
    ((1.0, 1.1, 4.0), (1.0, 1.1, 7.0)),
    ((1.0, 1.1, 1.0), (0.8, 0.8, 3.0)),
    ((0.25, 1.25, 1.25), (0.5, 1.0, 1.0)),
    ((4.0, 4.0, 1.0), (2.0, 2.0, 2.0)),
]


@pytest.mark.parametrize(("spacing", "new_spacing"), SPACINGS)
@pytest.mark.parametrize("force", [None, True, False])
@pytest.mark.parametrize("order", [3, 1])
def test_it_is_nnunets(spacing, new_spacing, force, order):
    image = np.random.default_rng(0).normal(size=(1, 9, 12, 11)).astype(np.float32)
    size = new_size(image.shape[1:], spacing, new_spacing)
    assert size == tuple(compute_new_shape(image.shape[1:], spacing, new_spacing))
    expected_axis = determine_do_sep_z_and_axis(force, spacing, new_spacing)[1]
    axis = coarse_axis(Resampling(order=order, force_separate_z=force, anisotropy_threshold=3), spacing, new_spacing)
    assert axis == expected_axis
    expected = resample_data_or_seg_to_shape(
        image, size, spacing, new_spacing, order=order, order_z=0, force_separate_z=force
    )[0]
    found = resample(image[0], size, order, axis)
    assert found.shape == size
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_slices_half_way_between_two_are_chosen_as_nnunet_does():
    image = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1).repeat(3, 2).repeat(3, 3)
    for count in (1, 3, 4, 5, 8, 13, 16, 24):
        expected = resample_data_or_seg_to_shape(
            image, (count, 3, 3), (9, 1, 1), (9 * 8 / count, 1, 1), order=3, order_z=0, force_separate_z=True
        )[0]
        np.testing.assert_array_equal(resample(image[0], (count, 3, 3), 3, 0), expected)
