"""One case's table against values worked out by hand, and lesion-wise scores against the published script's."""

import json
from dataclasses import replace
from math import inf, isfinite, isnan, nan, sqrt
from pathlib import Path

import numpy as np
import pytest

from nnunet_glims.evaluation import METRICS, PRESETS, LesionRules, Metric, Protocol, measure_case
from nnunet_glims.evaluation.metrics.metric import PENALTY
from nnunet_glims.evaluation.regions import NAMED_REGIONS
from nnunet_glims.images import read_label_map
from tests.evaluation.shapes import REGIONS, random_case
from tests.golden.corrupt import corrupt

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/lesionwise.json").read_text())
FIRST_RELEASE = json.loads((Path(__file__).parents[1] / "golden/metrics.json").read_text())
ONE = {"lesion": (1,)}


def volume(*boxes, shape=(20, 20, 20)):
    """Zeros with a cube of ones at each (start, size)."""
    labels = np.zeros(shape, np.uint8)
    for start, size in boxes:
        labels[tuple(slice(first, first + size) for first in start)] = 1
    return labels


def measure(truth, prediction, protocol=PRESETS["default"], spacing=(1, 1, 1), **more):
    return measure_case(truth, prediction, spacing, ONE, protocol, **more).regions["lesion"]


def test_counts():
    truth = volume(((2, 2, 2), 4))  # 64 voxels
    prediction = volume(((2, 2, 4), 4))  # 64 voxels, 32 of them in the truth
    measured = measure(truth, prediction, spacing=(1, 2, 5))
    assert measured["dice"] == 0.5
    assert measured["iou"] == 32 / 96
    assert measured["precision"] == measured["sensitivity"] == 0.5
    assert measured["specificity"] == (8000 - 96) / (8000 - 64)
    assert measured["volume_ml"] == measured["truth_ml"] == 0.64
    assert measured["volume_error"] == 0


def test_relative_volume_error_is_signed():
    assert measure(volume(((2, 2, 2), 4)), volume(((2, 2, 2), 2)))["volume_error"] == -56 / 64


@pytest.mark.parametrize("preset", PRESETS)
def test_both_empty_is_perfect(preset):
    empty = volume()
    measured = measure(empty, empty, PRESETS[preset])
    for metric in PRESETS[preset].metrics:
        if metric.best is not None:
            assert measured[metric.name] == metric.best, metric.name


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize(
    ("preset", "distance"), [("default", sqrt(1200)), ("brats2021", 373.1287), ("brats2023-gli", 374)]
)
def test_one_empty_is_the_worst(preset, distance, found):
    masks = [volume(), volume(((2, 2, 2), 5))]
    measured = measure(*(masks if found else masks[::-1]), PRESETS[preset])
    for name in ("dice", "iou", "precision", "sensitivity", "nsd"):
        assert measured[name] == 0
    for name in ("hd95", "hd100", "assd"):
        assert measured[name] == pytest.approx(distance)
    assert isnan(measured["volume_error"]) == found
    if "lesion_dice" in measured:
        assert (measured["lesion_dice"], measured["lesion_hd95"]) == (0, 374)
        assert (measured["lesions_false"], measured["lesions_missed"]) == ((1, 0) if found else (0, 1))


def test_penalty_may_be_nan():
    assert isnan(measure(volume(), volume(((2, 2, 2), 5)), Protocol(penalty="nan"))["hd95"])


def test_tolerances_by_region():
    truth, prediction = volume(((4, 4, 4), 6)), volume(((4, 4, 6), 6))
    wide = Protocol(tolerance_mm=0.5, region_tolerances_mm={"lesion": 2.0})
    assert measure(truth, prediction, wide)["nsd"] == 1
    assert measure(truth, prediction, Protocol(tolerance_mm=0.5))["nsd"] < 0.7


def test_voxels_to_ignore_do_not_count():
    truth, prediction = volume(((4, 4, 4), 6)), volume(((4, 4, 6), 6))
    expected = measure(truth[:, :, :10], prediction[:, :, :10])
    truth[:, :, 10:] = 7
    measured = measure(truth, prediction, ignored=7)
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value), name


def test_the_confusion_matrix_has_every_voxel():
    truth, prediction = volume(((4, 4, 4), 6)), volume(((4, 4, 6), 6)) * 2
    confusion = measure_case(truth, prediction, (1, 1, 1), {"a": (1,), "b": (2,)}).confusion
    np.testing.assert_array_equal(confusion, [[8000 - 6 * 6 * 8, 0, 72], [72, 0, 144], [0, 0, 0]])


RULES = replace(PRESETS["default"], penalty="brats2023", lesions=LesionRules(dilation=1, ignored_mm3=2))


def test_a_missed_lesion_and_a_false_one():
    truth = volume(((1, 1, 1), 3), ((12, 12, 12), 3))
    prediction = volume(((1, 1, 1), 3), ((1, 12, 12), 2))
    measured = measure(truth, prediction, RULES)
    assert [measured[f"lesions_{kind}"] for kind in ("found", "missed", "false")] == [1, 1, 1]
    assert measured["lesion_dice"] == pytest.approx(1 / 3)
    assert measured["lesion_hd95"] == pytest.approx(2 * 374 / 3)


def test_lesions_closer_than_the_dilation_are_one():
    truth = volume(((1, 1, 1), 3), ((1, 1, 6), 3))  # two voxels between them
    prediction = volume(((1, 1, 1), 3))
    assert measure(truth, prediction, RULES)["lesions_found"] == 1
    apart = volume(((1, 1, 1), 3), ((1, 1, 7), 3))
    assert measure(apart, prediction, RULES)["lesions_missed"] == 1


def test_small_lesions_do_not_count_but_small_false_ones_do():
    truth = volume(((1, 1, 1), 3), ((12, 12, 12), 1))
    measured = measure(truth, volume(((1, 1, 1), 3), ((1, 12, 12), 1)), RULES)
    assert [measured[f"lesions_{kind}"] for kind in ("found", "missed", "false")] == [1, 0, 1]


def test_a_component_may_belong_to_two_lesions():
    truth = volume(((1, 1, 1), 3), ((1, 1, 9), 3))
    prediction = truth.copy()
    prediction[2, 2, 1:12] = 1
    measured = measure(truth, prediction, RULES)
    assert measured["lesions_found"] == 2
    assert measured["lesion_dice"] == pytest.approx(2 * 27 / (27 + 59))


@pytest.mark.realdata
@pytest.mark.parametrize("key", GOLDEN)
def test_lesionwise_as_the_published_script(real_cases, key):
    case, seed, challenge = key.split("|")
    (file,) = (real_cases / "brats2018" / case).glob("*_seg.nii*")
    truth = read_label_map(file).labels.transpose().copy()
    truth[truth == 4] = 3
    protocol = PRESETS[challenge.lower().replace("brats", "brats2023")]
    measured = measure_case(truth, corrupt(truth, int(seed)), (1, 1, 1), NAMED_REGIONS["brats"], protocol).regions
    names = {
        "lesion_dice": "LesionWise_Score_Dice",
        "lesion_hd95": "LesionWise_Score_HD95",
        "lesions_found": "Num_TP",
        "lesions_missed": "Num_FN",
        "lesions_false": "Num_FP",
        "sensitivity": "Sensitivity",
        "specificity": "Specificity",
        "dice": "Legacy_Dice",
        "hd95": "Legacy_HD95",
    }
    for region, theirs in (("whole_tumor", "WT"), ("tumor_core", "TC"), ("enhancing_tumor", "ET")):
        for name, published in names.items():
            assert measured[region][name] == pytest.approx(GOLDEN[key][theirs][published], abs=1e-6), (region, name)
        volume_mm3 = GOLDEN[key][theirs]["GT_Complete_Volume"]
        assert measured[region]["truth_ml"] * 1000 == pytest.approx(volume_mm3)


def test_every_metric_of_a_protocol_is_measured():
    protocol = PRESETS["brats2023-gli"]
    assert protocol.metrics == METRICS
    assert set(measure(volume(((2, 2, 2), 5)), volume(((3, 2, 2), 5)), protocol)) == {metric.name for metric in METRICS}


def test_what_a_metric_declares_is_what_it_gives():
    """A perfect prediction has the best value, one without any overlap the worst, and the direction lies between them."""
    truth = volume(((2, 2, 2), 5))
    perfect, apart = (measure(truth, other, RULES) for other in (truth, volume(((12, 12, 12), 5))))
    for metric in METRICS:
        if metric.best is not None:
            assert perfect[metric.name] == metric.best, metric.name
        if metric.worst is not None and isfinite(metric.worst) and metric.name != "specificity":
            assert apart[metric.name] == metric.worst, metric.name
        if metric.higher_is_better is not None:
            assert (perfect[metric.name] > apart[metric.name]) == metric.higher_is_better, metric.name


def test_a_metric_is_one_class_and_one_line(monkeypatch):
    class Surplus(Metric):
        name, title, unit = "surplus", "Surplus", "voxels"
        best, worst = 0.0, inf
        needs = "voxels"
        one_empty = PENALTY

        def compute(self, masks):
            return float(masks.voxels.fp)

    monkeypatch.setattr("nnunet_glims.evaluation.protocol.METRICS", (*METRICS, Surplus()))
    assert measure(volume(((2, 2, 2), 4)), volume(((2, 2, 4), 4)))["surplus"] == 32
    assert measure(volume(), volume(((2, 2, 2), 5)), Protocol(penalty="brats2023"))["surplus"] == 374


@pytest.mark.parametrize("key", FIRST_RELEASE)
def test_numbers_are_those_of_the_first_release(key):
    """Where a number changes on purpose, raise METHOD_VERSION and renew tests/golden/metrics.json."""
    seed, preset, surface = key.split("|")
    truth, prediction = random_case(int(seed))
    protocol = replace(PRESETS[preset], surface=surface)
    measured = measure_case(truth, prediction, (0.7, 0.9, 5.0), REGIONS, protocol).regions
    for region, expected in FIRST_RELEASE[key].items():
        assert list(measured[region]) == list(expected)
        for name, value in expected.items():
            assert measured[region][name] == pytest.approx(nan if value is None else value, rel=1e-9, nan_ok=True), name


def test_one_penalty_for_regions_and_lesions():
    protocol = replace(RULES, penalty="diagonal")
    measured = measure(volume(((2, 2, 2), 5)), volume(), protocol)
    assert measured["lesion_hd95"] == measured["hd95"] == pytest.approx(sqrt(1200))
