"""The box around a mask, and differences between geometries, against their definitions."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nnunet_glims.geometry import Geometry, bounding_box

shapes = arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)
masks = st.sampled_from([bool, np.uint8, np.float32]).flatmap(
    lambda kind: arrays.arrays(kind, shapes, elements=st.sampled_from([kind(0), kind(1)]), fill=st.just(kind(0)))
)


@settings(max_examples=60, deadline=None)
@given(mask=masks, margin=st.integers(0, 3))
def test_the_box_is_the_smallest_that_holds_the_mask_and_its_margin(mask, margin):
    box = bounding_box(mask, margin)
    places = np.argwhere(mask)
    if not len(places):
        assert box is None
        return
    lowest = np.maximum(places.min(0) - margin, 0)
    highest = np.minimum(places.max(0) + margin, np.array(mask.shape) - 1)
    assert [(part.start, part.stop) for part in box] == [
        (low, high + 1) for low, high in zip(lowest, highest, strict=True)
    ]
    assert np.count_nonzero(mask[box]) == len(places)


geometries = st.builds(
    Geometry,
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.sampled_from([1.0, 1.0005, 1.002, 2.0])] * 3),
    st.tuples(*[st.sampled_from([0.0, 0.005, 0.02, -7.0])] * 3),
    st.sampled_from([(1.0, 0, 0, 0, 1, 0, 0, 0, 1), (1.0, 0, 0, 0, 0.0, -1, 0, 1, 0)]),
)


@settings(max_examples=60, deadline=None)
@given(one=geometries, other=geometries)
def test_a_difference_is_seen_from_both_sides(one, other):
    assert one.difference(one) is None
    assert (one.difference(other) is None) == (other.difference(one) is None)


def test_a_difference_names_what_differs_and_both_values():
    one = Geometry((4, 5, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    assert one.difference(replace(one, size=(4, 5, 7))) == "has 4×5×6 voxels, not 4×5×7"
    assert one.difference(replace(one, spacing=(1.0, 1.0, 1.5))) == "has spacing [1.0, 1.0, 1.0], not [1.0, 1.0, 1.5]"
    assert one.difference(replace(one, origin=(0.0, 0.009, 0.0))) is None  # files store few digits
    assert "origin" in one.difference(replace(one, origin=(0.0, 0.02, 0.0)))
