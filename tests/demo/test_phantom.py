import json

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from nnunet_glims.demo import phantom
from nnunet_glims.demo.phantom import CHANNELS, ED, ET, NCR, make_case, write_raw_dataset
from nnunet_glims.errors import UsageError

SMALL = {"cases": 2, "test_cases": 1, "shape": (32, 36, 30), "spacing_mm": (5.0, 5.0, 5.0)}


def _rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _voxels(folder):
    return {
        path.relative_to(folder).as_posix(): np.asarray(nibabel.load(path).dataobj)
        for path in sorted(folder.rglob("*.nii.gz"))
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_raw_dataset(tmp_path_factory.mktemp("raw"), **SMALL)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(28, 28, 28), (40, 44, 32)])
def test_regions_are_nested_in_one_tumour_within_the_brain(shape, seed):
    case = make_case(_rng(seed), shape, (4.0, 4.0, 4.0))
    assert set(np.unique(case.labels)) == {0, NCR, ED, ET}
    assert ndimage.label(case.labels > 0)[1] == 1
    assert (case.channels[:, case.labels > 0] > 0).all()
    neighbours_of_necrosis = case.labels[ndimage.binary_dilation(case.labels == NCR)]
    assert set(np.unique(neighbours_of_necrosis)) <= {NCR, ET}


@pytest.mark.parametrize("seed", range(3))
def test_channels_are_zero_outside_of_the_brain_only(seed):
    channels = make_case(_rng(seed)).channels
    brain = channels[0] > 0
    assert all(((channel > 0) == brain).all() and channel.min() == 0 for channel in channels)
    assert 0.15 < brain.mean() < 0.6
    assert not any(brain.take(edge, axis).any() for axis in range(3) for edge in (0, -1))


@pytest.mark.parametrize("seed", range(3))
def test_contrasts_are_those_of_real_mr(seed):
    case = make_case(_rng(seed))
    tumour = case.labels > 0
    # Near the tumour, so that the bias field does not count.
    healthy = ndimage.binary_dilation(tumour, iterations=4) & ~tumour & (case.channels[0] > 0)
    signal = {
        name: {label: np.median(channel[case.labels == label]) for label in (NCR, ED, ET)}
        | {"healthy": np.median(channel[healthy])}
        for name, channel in zip(CHANNELS, case.channels)
    }
    assert signal["FLAIR"][ED] > 1.3 * signal["FLAIR"]["healthy"]
    assert signal["T2"][ED] > 1.3 * signal["T2"]["healthy"]
    assert signal["T1"][ED] < signal["T1"]["healthy"]
    assert signal["T1ce"][ET] > 1.2 * max(signal["T1ce"][other] for other in (NCR, ED, "healthy"))
    assert signal["T1ce"][NCR] < 0.9 * min(signal["T1ce"][other] for other in (ED, ET, "healthy"))
    assert signal["T2"][NCR] > 1.3 * signal["T2"]["healthy"]


def test_tumours_differ_in_place_and_size():
    tumours = [make_case(_rng(seed)).labels > 0 for seed in range(6)]
    centres = np.array([ndimage.center_of_mass(tumour) for tumour in tumours])
    sizes = [tumour.sum() for tumour in tumours]
    assert (centres.std(axis=0) > 2).any()
    assert max(sizes) > 1.2 * min(sizes)


def test_dataset_has_nnunet_layout_and_geometry(dataset):
    assert dataset.name == "Dataset900_GLIMSDemo"
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["numTraining"] == 2
    assert content["file_ending"] == ".nii.gz"
    assert content["channel_names"] == {"0": "FLAIR", "1": "T1ce", "2": "T1", "3": "T2"}
    voxels = _voxels(dataset)
    assert len(voxels) == 3 * 5
    for split, count in (("Tr", 2), ("Ts", 1)):
        for index in range(count):
            name = phantom.case_name(split, index)
            assert f"labels{split}/{name}.nii.gz" in voxels
            assert all(f"images{split}/{name}_{channel:04d}.nii.gz" in voxels for channel in range(4))
    image = nibabel.load(dataset / "imagesTr/phantom_000_0000.nii.gz")
    assert image.shape == (32, 36, 30)
    assert image.header.get_zooms() == (5.0, 5.0, 5.0)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")


def test_nnunet_finds_the_cases_and_reads_them(dataset):
    from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    found = get_filenames_of_train_images_and_targets(str(dataset))
    assert sorted(found) == ["phantom_000", "phantom_001"]
    for case in found.values():
        assert check_cases(case["images"], case["label"], 4, SimpleITKIO)


def test_labels_survive_nnunets_regions(dataset):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    content = json.loads((dataset / "dataset.json").read_text())
    manager = LabelManager(content["labels"], content["regions_class_order"])
    assert manager.has_regions
    assert manager.foreground_regions == [(1, 2, 3), (1, 3), 3]
    assert list(content["labels"]) == ["background", "whole_tumor", "tumor_core", "enhancing_tumor"]
    labels = _voxels(dataset)["labelsTr/phantom_000.nii.gz"]
    heads = np.stack([np.isin(labels, region) for region in manager.foreground_regions]).astype(np.float32)
    assert (manager.convert_probabilities_to_segmentation(heads) == labels).all()


def test_same_seed_gives_the_same_voxels_and_another_seed_others(dataset, tmp_path):
    first = _voxels(dataset)
    again = _voxels(write_raw_dataset(tmp_path / "again", **SMALL))
    more = _voxels(write_raw_dataset(tmp_path / "more", **{**SMALL, "cases": 3}))
    other = _voxels(write_raw_dataset(tmp_path / "other", **SMALL, seed=1))
    assert first.keys() == again.keys()
    assert all(first[path].tobytes() == again[path].tobytes() == more[path].tobytes() for path in first)
    assert not any(np.array_equal(first[path], other[path]) for path in first)
    assert not np.array_equal(first["labelsTr/phantom_000.nii.gz"], first["labelsTs/phantom_test_000.nii.gz"])


def test_crash_leaves_no_half_dataset(tmp_path, monkeypatch):
    write = phantom._write_case

    def fail_at_the_second(folder, split, index, *rest):
        if index == 1:
            raise OSError("disk full")
        write(folder, split, index, *rest)

    monkeypatch.setattr(phantom, "_write_case", fail_at_the_second)
    with pytest.raises(OSError, match="disk full"):
        write_raw_dataset(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_existing_dataset_is_reused_for_the_same_arguments_only(tmp_path):
    folder = write_raw_dataset(tmp_path, **SMALL)
    label = folder / "labelsTr/phantom_000.nii.gz"
    written = label.stat().st_mtime_ns
    assert write_raw_dataset(tmp_path, **SMALL) == folder
    assert label.stat().st_mtime_ns == written
    with pytest.raises(UsageError, match=str(folder)):
        write_raw_dataset(tmp_path, **SMALL, seed=1)
    with pytest.raises(UsageError, match="Dataset900_GLIMSDemo.*another number"):
        write_raw_dataset(tmp_path, "Dataset900_Other", **SMALL)
    label.unlink()
    with pytest.raises(UsageError, match="lacks labelsTr/phantom_000.nii.gz"):
        write_raw_dataset(tmp_path, **SMALL)


@pytest.mark.parametrize("content", [None, "{", '{"name": "patients"}'])
def test_foreign_folder_is_left_alone(tmp_path, content):
    folder = tmp_path / "Dataset900_GLIMSDemo"
    folder.mkdir()
    if content is not None:
        (folder / "dataset.json").write_text(content)
    before = sorted(folder.iterdir())
    with pytest.raises(UsageError, match=f"{folder} exists and was not written by this phantom"):
        write_raw_dataset(tmp_path, **SMALL)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset_name": "Demo"}, "'Demo'"),
        ({"cases": 0}, "cases=0"),
        ({"test_cases": -1}, "test_cases=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"shape": (16, 32, 32)}, r"\(16, 32, 32\).*28"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, r"\(1.0, 0.0, 1.0\) mm"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        write_raw_dataset(tmp_path, **{**SMALL, **wrong})
    assert list(tmp_path.iterdir()) == []
