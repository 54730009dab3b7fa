import pytest

from nnunet_glims.errors import UsageError
from nnunet_glims.topology import scales, stage_sizes, stage_strides

ISOTROPIC = [[1, 1, 1]] + [[2, 2, 2]] * 5


@pytest.mark.parametrize("patch", [(96, 96, 96), (128, 128, 128)])
def test_isotropic_patches_get_the_papers_topology(patch):
    assert stage_strides(patch) == ISOTROPIC
    assert stage_strides(patch, (1, 1, 1), stages=4) == ISOTROPIC[:4]


def test_a_coarse_axis_waits_as_in_nnunets_plan_of_an_abdominal_mr():
    # nnU-Net 2.8.1 plans CHAOS (7.7 × 1.25 × 1.25 mm, patch 32×224×256) with exactly these strides.
    strides = stage_strides((32, 224, 256), (7.7, 1.25, 1.25))
    assert strides == [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 1, 1), (2, 1, 1), (1.99, 1, 1), (7.7, 1.25, 1.25), (0.7, 5, 0.9)])
def test_the_ratio_at_which_an_axis_waits_is_nnunets(spacing):
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    # With sides of 512 no axis ends before the sixth stage, so that the spacing alone decides.
    _, planned, *_ = get_pool_and_conv_props(spacing, (512, 512, 512), 1, 99)
    assert [tuple(stride) for stride in stage_strides((512, 512, 512), spacing)] == list(planned[:6])


def test_an_odd_axis_is_left_alone():
    # 40 -> 20 -> 10 -> 5 and 56 -> 28 -> 14 -> 7 end after three halvings.
    assert stage_strides((40, 56, 40)) == ISOTROPIC[:4] + [[1, 1, 1]] * 2
    assert stage_strides((160, 128, 112)) == ISOTROPIC[:5] + [[2, 2, 1]]


@pytest.mark.parametrize("patch", [(40, 56, 40), (32, 224, 256), (20, 320, 256), (160, 128, 112), (64, 192, 160)])
def test_sizes_follow_the_strides_and_stay_at_least_two_voxels(patch):
    strides = stage_strides(patch)
    sizes = stage_sizes(patch, strides)
    assert sizes[0] == patch
    for before, after, stride in zip(sizes, sizes[1:], strides[1:], strict=False):
        assert all(b == a * s for b, a, s in zip(before, after, stride, strict=True))
    assert min(sizes[-1]) >= 2


def test_scales_are_relative_to_the_patch():
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert scales(strides, 3) == [[1, 1, 1], [1, 0.5, 0.5], [0.5, 0.25, 0.25]]


@pytest.mark.parametrize("patch", [None, (64, 64), (64, 64, 0), (64, 64, 3.5), 96, "96"])
def test_a_patch_that_is_not_three_positive_sizes_is_refused(patch):
    with pytest.raises(UsageError, match="patch size"):
        stage_strides(patch)


def test_bad_spacing_is_refused():
    with pytest.raises(UsageError, match="spacing"):
        stage_strides((64, 64, 64), (1, 0, 1))


def test_strides_that_do_not_divide_name_axis_and_factor():
    with pytest.raises(UsageError, match=r"divided by 4 along axis 2"):
        stage_sizes((96, 96, 90), [[1, 1, 1], [2, 2, 2], [2, 2, 2]])
