"""Each definition against the library that it is named after, on random shapes; what can be computed by hand, by hand."""

import numpy as np
import pytest
from scipy import ndimage

from nnunet_glims.evaluation.surfaces import DEFINITIONS, SurfaceDistances, corner_areas, surface_of
from nnunet_glims.images import read_label_map

WAYS = (("gt_to_pred", "gt"), ("pred_to_gt", "pred"))
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.9, 5.0), (3.0, 1.25, 0.4)]


def blob(seed, shape=(24, 31, 18)):
    """A smooth random shape that also touches the image's border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return noise > np.quantile(noise, 0.8)


def specks(seed, shape=(24, 31, 18)):
    """Single voxels and small groups of them."""
    return np.random.default_rng(seed).random(shape) > 0.97


def pairs():
    yield blob(0), blob(1)
    yield blob(2), blob(2) | specks(3)
    yield specks(4), specks(5)
    yield blob(6), np.roll(blob(6), 3, 2)


def distances(truth, prediction, spacing, definition):
    surfaces = [surface_of(mask, spacing, definition) for mask in (truth, prediction)]
    return SurfaceDistances.between(*surfaces, definition)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surfels_equal_surface_distance(spacing):
    library = pytest.importorskip("surface_distance")
    for truth, prediction in pairs():
        ours = distances(truth, prediction, spacing, "surfels")
        theirs = library.compute_surface_distances(truth, prediction, spacing)
        for percentile in (50, 95, 100):
            assert ours.hausdorff(percentile) == pytest.approx(
                library.compute_robust_hausdorff(theirs, percentile), abs=1e-9
            )
        for tolerance in (0, 1, 2.5):
            expected = library.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert ours.within(tolerance) == pytest.approx(expected, abs=1e-9)
        total = sum(theirs[f"distances_{way}"] @ theirs[f"surfel_areas_{of}"] for way, of in WAYS)
        area = sum(theirs[f"surfel_areas_{of}"].sum() for _, of in WAYS)
        assert ours.average() == pytest.approx(total / area, abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_voxels_equal_monai(spacing):
    metrics = pytest.importorskip("monai.metrics")
    import torch

    for truth, prediction in pairs():
        ours = distances(truth, prediction, spacing, "voxels")
        masks = [torch.tensor(mask)[None, None] for mask in (prediction, truth)]
        given = {"include_background": True, "spacing": spacing}
        hd95 = metrics.compute_hausdorff_distance(*masks, percentile=95, **given)
        hd = metrics.compute_hausdorff_distance(*masks, **given)
        assd = metrics.compute_average_surface_distance(*masks, symmetric=True, **given)
        nsd = metrics.compute_surface_dice(*masks, class_thresholds=[1.0], **given)
        measured = [ours.hausdorff(95), ours.hausdorff(100), ours.average(), ours.within(1)]
        assert measured == pytest.approx([float(value) for value in (hd95, hd, assd, nsd)], abs=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_pooled_equals_medpy(spacing):
    library = pytest.importorskip("medpy.metric.binary")
    for truth, prediction in pairs():
        ours = distances(truth, prediction, spacing, "pooled")
        theirs = [getattr(library, name)(prediction, truth, spacing) for name in ("hd95", "hd", "assd")]
        assert [ours.hausdorff(95), ours.hausdorff(100), ours.average()] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_cube_and_the_same_cube_moved(definition):
    truth, prediction = np.zeros((2, 20, 20, 20), bool)
    truth[4:9, 4:9, 4:9] = True
    prediction[4:9, 4:9, 6:11] = True
    measured = distances(truth, prediction, (1, 1, 1.5), definition)
    assert measured.hausdorff(100) == 3  # two voxels of 1.5 mm
    assert distances(truth, truth, (1, 1, 1.5), definition).hausdorff(100) == 0
    assert distances(truth, truth, (1, 1, 1.5), definition).within(0) == 1


def test_one_voxel_is_an_octahedron():
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    surface = surface_of(mask, (2, 2, 2))
    # eight equilateral triangles between the middles of the edges, which are √2 mm long
    assert surface.weights.sum() == pytest.approx(8 * np.sqrt(3) / 4 * 2)
    corners = {tuple(np.add(corner, 1)) for corner in np.ndindex(2, 2, 2)}
    assert {tuple(point) for point in surface.points} == corners


def test_areas_do_not_depend_on_which_side_is_inside():
    areas = corner_areas((1.0, 2.0, 3.5))
    np.testing.assert_allclose(areas, areas[::-1])
    assert areas[0] == areas[255] == 0
    assert areas[0b11110000] == pytest.approx(2 * 3.5)  # a plane across the first axis


def test_an_empty_mask_has_no_surface():
    for definition in DEFINITIONS:
        assert len(surface_of(np.zeros((4, 5, 6), bool), (1, 1, 1), definition)) == 0


@pytest.mark.realdata
def test_definitions_equal_their_libraries_on_real_organs(real_cases):
    library = pytest.importorskip("surface_distance")
    medpy = pytest.importorskip("medpy.metric.binary")
    metrics = pytest.importorskip("monai.metrics")
    import torch

    truth = read_label_map(real_cases / "chaos_mr/label_1.nii.gz")
    assert max(truth.spacing) > 2 * min(truth.spacing)
    for organ in np.unique(truth.labels)[1:]:
        mask = truth.labels == organ
        moved = np.roll(mask, (1, -3, 2), (0, 1, 2))
        surfels = library.compute_surface_distances(mask, moved, truth.spacing)
        masks = [torch.tensor(one)[None, None] for one in (moved, mask)]
        expected = {
            "surfels": library.compute_robust_hausdorff(surfels, 95),
            "voxels": float(metrics.compute_hausdorff_distance(*masks, True, percentile=95, spacing=truth.spacing)),
            "pooled": medpy.hd95(moved, mask, truth.spacing),
        }
        for definition, value in expected.items():
            assert distances(mask, moved, truth.spacing, definition).hausdorff(95) == pytest.approx(value, abs=1e-4)
