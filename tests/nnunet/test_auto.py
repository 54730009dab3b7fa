"""Plans sized for a GPU. Strides, building and a training step of every choice are covered by counting its memory."""

import inspect
import json
import re
from itertools import pairwise
from math import prod

import pytest

from nnunet_glims.cli import main
from nnunet_glims.errors import UsageError
from nnunet_glims.networks import network_named
from nnunet_glims.nnunet.plans import sizing
from nnunet_glims.nnunet.plans.memory import GIB
from nnunet_glims.nnunet.plans.sizing import DatasetProperties, shrinking_patches, size_for_gpu
from nnunet_glims.topology import stage_strides, total_stride
from tests.preprocessed import DATASET, make_plans, write_preprocessed

LATUPNET, GLIMS = network_named("LATUPNet"), network_named("GLIMS")
SHALLOW = {"depths": [1] * 5}
TINY_GLIMS = {"feature_size": 3, "num_heads": [3] * 5, "depths": [1] * 5}
HIPPOCAMPUS = DatasetProperties(1, 3, False, (1, 1, 1), (36, 50, 35), 260, (40, 56, 40))
BRATS = DatasetProperties(4, 3, True, (1, 1, 1), (140.5, 173, 142), 1251, (128, 128, 128))
CHAOS = DatasetProperties(1, 5, False, (7.7, 1.25, 1.25), (35, 248.5, 256), 400, (32, 224, 256))
SMALL = DatasetProperties(1, 2, False, (1, 1, 1), (18, 20, 16), 100, (20, 20, 16))
HUGE = DatasetProperties(1, 14, False, (1, 0.7, 0.7), (900, 700, 700), 200, (128, 128, 128))
FLAT = DatasetProperties(1, 4, False, (10, 1.4, 1.4), (9, 256, 216), 150, (10, 256, 224))
ALL = {"hippocampus": HIPPOCAMPUS, "brats": BRATS, "chaos": CHAOS, "small": SMALL, "huge": HUGE, "flat": FLAT}


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("hippocampus", 6), ("brats", 8), ("brats", 80), ("chaos", 6), ("chaos", 12), ("small", 12), ("huge", 6),
        ("huge", 24), ("huge", 80), ("flat", 8), ("flat", 24),
    ],
)  # fmt: skip
def test_the_memory_is_used_or_it_is_said_what_keeps_from_it(name, gigabytes):
    data = ALL[name]
    fitted = size_for_gpu(data, LATUPNET, gigabytes * GIB)
    use = fitted.memory.total / (gigabytes * GIB)
    assert use <= 1
    assert use >= 0.9 or fitted.limit.startswith(("the image", "the data set"))
    assert fitted.batch_size >= 2
    covered = fitted.batch_size * prod(fitted.patch_size) / (data.cases * prod(data.median_shape))
    assert fitted.batch_size == 2 or covered < 0.055
    strides = stage_strides(fitted.patch_size, data.spacing, LATUPNET.stages)
    assert all(side % total == 0 for side, total in zip(fitted.patch_size, total_stride(strides)))
    assert all(prod(stride) > 1 for stride in strides[1:])
    assert all(side < size + 16 for side, size in zip(fitted.patch_size, data.median_shape))


def test_more_memory_means_less_recomputing_and_larger_patches():
    small, large = (size_for_gpu(BRATS, GLIMS, gigabytes * GIB, SHALLOW, kernels=True) for gigabytes in (8, 24))
    assert (small.checkpointing, large.checkpointing) == ("aggregators", "none")
    assert prod(large.patch_size) >= prod(small.patch_size)
    for fitted, gigabytes in ((small, 8), (large, 24)):
        assert 0.9 <= fitted.memory.total / (gigabytes * GIB) <= 1
        relative = [side / size for side, size in zip(fitted.patch_size, BRATS.median_shape)]
        assert max(relative) < 2 * min(relative)


def test_swin_unetr_is_sized_too():
    pytest.importorskip("monai")
    arguments = {"feature_size": 12, "depths": [1] * 4}
    fitted = size_for_gpu(BRATS, network_named("SwinUNETR"), 12 * GIB, arguments, checkpointing=False)
    assert 0.9 <= fitted.memory.total / (12 * GIB) <= 1 and fitted.checkpointing is False
    assert all(side % 32 == 0 for side in fitted.patch_size)


def test_patches_shrink_from_the_image_along_the_axis_that_covers_most_of_it():
    patches = list(shrinking_patches(CHAOS, LATUPNET, sizing.FIRST_VOLUME))
    assert patches[0] == (36, 256, 256)  # 35 × 248.5 × 256, divisible as the strides ask
    assert all(prod(larger) > prod(smaller) for larger, smaller in pairwise(patches))
    for larger, smaller in pairwise(patches):
        (axis,) = [axis for axis in range(3) if larger[axis] != smaller[axis]]
        covered = [side / size for side, size in zip(larger, (35, 249, 256))]
        assert covered[axis] == max(covered) or larger[covered.index(max(covered))] < 24
    assert next(shrinking_patches(HUGE, LATUPNET, 256**3)) == (208, 288, 288)  # 202 mm along all axes


def test_constants_are_those_of_nnunets_planner():
    """nnU-Net keeps them inside functions; another value there must be noticed here."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    source = inspect.getsource(ExperimentPlanner)

    def in_source(pattern):
        (found,) = set(re.findall(pattern, source))
        return eval(found)

    assert in_source(r"self\.UNet_featuremap_min_edge_length = ([\d.]+)") == sizing.SMALLEST_EDGE
    assert in_source(r"self\.UNet_min_batch_size = ([\d.]+)") == sizing.SMALLEST_BATCH
    assert in_source(r"self\.max_dataset_covered = ([\d.]+)") == sizing.LARGEST_PART
    assert in_source(r"tmp \* \((\d+ \*\* 3) / np\.prod\(tmp\)\)") == sizing.FIRST_VOLUME


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(UsageError, match=r"0.5 GB are too little: .* take 0\.\d GB with LATUPNet"):
        size_for_gpu(BRATS, LATUPNET, 0.5 * GIB)


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["nnunet-glims"])
    plans = make_plans()
    del plans["configurations"]["3d_fullres"]["training"]
    return write_preprocessed(tmp_path, plans)


def auto(*options, network="latupnet", vram="2"):
    return main(["plans", "auto", "-d", "777", "--network", network, "--vram", vram, *options])


def test_a_plans_file_is_written_that_shares_the_data(preprocessed, capsys):
    assert auto() == 0
    told = capsys.readouterr().out
    written = json.loads((preprocessed / "nnUNetPlans_latupnet_2GB.json").read_text())
    configuration = written["configurations"]["3d_fullres"]
    assert written["plans_name"] == "nnUNetPlans_latupnet_2GB"
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert configuration["patch_size"] == [40, 40, 40] and configuration["batch_size"] == 2  # four cases only
    for word in ("40×40×40", "2×2×2", "weights", "overhead", "limited by    the data set", "preprocessed already"):
        assert word in told
    command = f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerLATUPNet -p nnUNetPlans_latupnet_2GB"
    assert command in told


def test_a_base_that_names_the_network_keeps_its_arguments_and_training(preprocessed):
    base = make_plans("GLIMS", epochs=7)
    base["plans_name"] = "mine"
    (preprocessed / "mine.json").write_text(json.dumps(base))
    assert auto("-p", "mine", "-o", "sized", "--checkpointing", "stages", network="glims") == 0
    configuration = json.loads((preprocessed / "sized.json").read_text())["configurations"]["3d_fullres"]
    arguments = configuration["architecture"]["arch_kwargs"]
    assert {key: arguments[key] for key in TINY_GLIMS} == TINY_GLIMS
    assert arguments["checkpointing"] == "stages"
    assert configuration["training"]["epochs"] == 7


def test_wrong_network_arguments_of_the_base_are_named(preprocessed, capsys):
    base = make_plans("GLIMS")
    base["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["featuresize"] = 12
    (preprocessed / "mine.json").write_text(json.dumps(base))
    assert auto("-p", "mine", "-o", "sized", network="glims") == 2
    message = "mine.json: network_arguments: featuresize: unknown key; did you mean 'feature_size'"
    assert message in capsys.readouterr().err
    assert not (preprocessed / "sized.json").exists()


def test_sizes_of_two_configurations_stand_in_one_file(preprocessed):
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    fullres = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_lowres"] = {**fullres, "spacing": [2.0] * 3, "median_image_size_in_voxels": [18.0] * 3}
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert auto("-o", "sized") == 0 and auto("-o", "sized", "-c", "3d_lowres") == 0
    written = json.loads((preprocessed / "sized.json").read_text())["configurations"]
    assert {name: content["patch_size"] for name, content in written.items()} == {
        "3d_fullres": [40] * 3,
        "3d_lowres": [20] * 3,
    }
    assert auto("-o", "sized") == 0  # nothing has changed
    assert json.loads((preprocessed / "sized.json").read_text())["configurations"] == written


def test_where_data_are_not_preprocessed_the_command_is_told(preprocessed, capsys):
    (preprocessed / "nnUNetPlans_3d_fullres").rename(preprocessed / "elsewhere")
    assert auto("-o", "sized") == 0
    assert "nnUNetv2_preprocess -d 777 -plans_name sized -c 3d_fullres" in capsys.readouterr().out


def test_another_plans_file_of_that_name_stays_without_overwrite(preprocessed, capsys):
    assert auto("-o", "sized") == 0 and auto("-o", "sized") == 0  # the same content again
    before = (preprocessed / "sized.json").read_text()
    content = json.loads(before)
    content["configurations"]["3d_fullres"]["batch_size"] = 3
    (preprocessed / "sized.json").write_text(changed := json.dumps(content))
    assert auto("-o", "sized") == 2
    message = capsys.readouterr().err
    assert (
        "batch_size is 3 in this file and would be 2 now: it was changed by hand" in message
        and "--overwrite" in message
    )
    assert (preprocessed / "sized.json").read_text() == changed
    assert auto("-o", "sized", "--overwrite") == 0
    assert (preprocessed / "sized.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-d", "999"], "999"),
        (["-p", "nnUNetPlansX"], "no plans yet. Run nnUNetv2_plan_and_preprocess first, or nnUNetv2_plan_experiment"),
        (["-c", "2d"], "two-dimensional"),
        (["-c", "3d_fulres"], "did you mean '3d_fullres'"),
        (["--vram", "0.5"], "0.5 GB are too little"),
        (["--vram", "-8"], "--vram -8"),
        (["--vram", "nan"], "--vram nan"),
        (["--network", "glimz"], "network 'glimz' is unknown: did you mean 'GLIMS'"),
        (["--checkpointing", "all"], "LATUPNet has none"),
        (["--network", "glims", "--checkpointing", "stage"], "did you mean 'stages'"),
        (["-o", "a/b"], "--name 'a/b'"),
        (["-o", "nnUNetPlans"], "another name than the base's"),
        (["-o", "a__b"], "--name 'a__b'"),
        (["-p", "../nnUNetPlans"], "'../nnUNetPlans' can be no part of a file's name"),
        (["--vram", "1e30"], "at most 10000"),
    ],
)
def test_wrong_use_says_what_and_writes_nothing(preprocessed, capsys, options, message):
    before = sorted(preprocessed.iterdir())
    assert auto(*options) == 2
    assert message in capsys.readouterr().err
    assert sorted(preprocessed.iterdir()) == before
