"""nnU-Net's folders: variables, data sets, dataset.json, and the one list of a folder's label maps."""

import json

import pytest

from nnunet_glims.errors import UsageError
from nnunet_glims.nnunet.dataset_json import read_dataset_json
from nnunet_glims.nnunet.folders import (
    ENDINGS,
    PREPROCESSED,
    RAW,
    RESULTS,
    ignored_label,
    label_maps,
    other_files,
    preprocessed_folder,
    regions_of,
)

DATASET = {"channel_names": {"0": "T2"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


@pytest.mark.parametrize("root", [RAW, PREPROCESSED, RESULTS], ids=lambda root: root.variable)
@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(root, value, monkeypatch):
    monkeypatch.delenv(root.variable, raising=False)
    if value is not None:
        monkeypatch.setenv(root.variable, value)
    with pytest.raises(UsageError, match=f"the environment variable {root.variable} is not set"):
        _ = root.path
    assert root.find("Dataset001_A") is None


def test_data_sets_by_number_and_name(tmp_path, monkeypatch):
    for root in (RAW, PREPROCESSED, RESULTS):
        folder = tmp_path / root.variable
        folder.mkdir()
        monkeypatch.setenv(root.variable, str(folder))
    (tmp_path / "nnUNet_raw/Dataset007_Toy").mkdir()
    assert RAW.dataset("7") == RAW.dataset("Dataset007_Toy") == tmp_path / "nnUNet_raw/Dataset007_Toy"
    with pytest.raises(UsageError, match="data set '8'"):
        RAW.dataset("8")
    with pytest.raises(UsageError, match="nnUNet_results/Dataset007_Toy: there is no such folder"):
        RESULTS.dataset("7")
    with pytest.raises(UsageError, match="Run nnUNetv2_plan_and_preprocess -d 7 first"):
        preprocessed_folder("7")


def test_label_maps(tmp_path):
    for name in ("b.nii.gz", "a.nii.gz", "._a.nii.gz", ".c.nii.gz", "dataset.json", "notes.txt"):
        (tmp_path / name).touch()
    assert list(label_maps(tmp_path).items()) == [("a", tmp_path / "a.nii.gz"), ("b", tmp_path / "b.nii.gz")]
    assert label_maps(tmp_path, ".nii.gz") == label_maps(tmp_path)
    assert label_maps(tmp_path / "nowhere") == {}
    (tmp_path / "c.nii").touch()
    assert list(label_maps(tmp_path)) == ["a", "b", "c"]
    with pytest.raises(UsageError, match=r"c\.nii: this does not end in \.nii\.gz"):
        label_maps(tmp_path, ".nii.gz")


@pytest.mark.parametrize(
    ("names", "ending"),
    [
        (("CASE.nii", "CASE.nii.gz"), None),
        (("CASE.nii", "CASE.nii.gz"), ".nii.gz"),
        (("CASE.NII.GZ", "CASE.nii.gz"), ".nii.gz"),
        (("CASE.gipl", "CASE.tif"), None),
        (("Cafe\u0301.nii.gz", "Caf\u00e9.nii.gz"), None),
    ],
)
def test_two_label_maps_of_one_case_are_refused(tmp_path, names, ending):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"case Ca\S+ has two files, |case CASE has two files, ") as raised:
        label_maps(tmp_path, ending)
    assert all(name in str(raised.value) for name in names)


@pytest.mark.parametrize("name", [b"a\x1b[31m.nii.gz", b"a\nb.nii.gz", b"a\xff.nii.gz"])
def test_names_that_cannot_be_printed_are_refused(tmp_path, name):
    open(bytes(tmp_path) + b"/" + name, "w").close()
    with pytest.raises(UsageError, match="rename this file") as raised:
        label_maps(tmp_path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".tif", ".tiff", ".NII.GZ"])
def test_every_ending_of_nnunet_is_known(tmp_path, ending):
    (tmp_path / f"a.b{ending}").touch()
    assert list(label_maps(tmp_path)) == list(label_maps(tmp_path, ending.lower())) == ["a.b"]


def test_other_files_are_those_that_are_passed_over(tmp_path):
    written = ("a.nii.gz", "a.npz", "a.pkl", "dataset.json", "plans.json", "predict_from_raw_data_args.json", ".hidden")
    for name in (*written, "b.npz", "a.nii.gz.bak", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "evaluation").mkdir()
    assert [file.name for file in other_files(tmp_path)] == ["a.nii.gz.bak", "a.png", "b.npz", "notes.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DATASET, None),
        ([1], "a mapping of keys to values is wanted"),
        ({**DATASET, "file_ending": None}, "file_ending: a text is wanted, not null"),
        ({**DATASET, "file_ending": "/../x"}, "file_ending: a text of the form"),
        ({**DATASET, "labels": None}, "labels: a mapping of keys to values is wanted, not null"),
        ({**DATASET, "labels": {"background": 0, "organ": None}}, "labels.organ: .* is wanted, not null"),
        ({**DATASET, "labels": {"background": 0, "organ": []}}, "labels.organ: .* is wanted, not an empty list"),
        ({**DATASET, "labels": {"background": 0, "organ": 1.5}}, "labels.organ: .* is wanted, not 1.5"),
        ({**DATASET, "channel_names": ["MR"]}, "channel_names: a mapping of keys to values is wanted"),
        ({**DATASET, "channel_names": {"1": "MR"}}, "channel_names: the channels must be numbered 0, not 1"),
        ({**DATASET, "numTraining": [60]}, r"numTraining: a whole number is wanted, not \[60\]"),
        ({key: DATASET[key] for key in ("channel_names", "labels")}, "file_ending: this key is required"),
        ({**DATASET, "labels": {"0": "background", "1": "organ"}}, "names first and numbers after them"),
    ],
)
def test_dataset_json_is_checked(tmp_path, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    if message is None:
        assert read_dataset_json(path) == content
        return
    with pytest.raises(UsageError, match=message) as raised:
        read_dataset_json(path)
    assert str(path) in str(raised.value)


def test_regions_and_the_label_to_ignore():
    labels = {"background": 0, "whole_tumor": [1, 2], "core": 2, "ignore": 3}
    assert regions_of({"labels": labels}) == {"whole_tumor": (1, 2), "core": (2,)}
    assert ignored_label({"labels": labels}) == 3
    assert ignored_label(DATASET) is None


@pytest.mark.parametrize("background", [{"Background": 0}, {"BACKGROUND": 0}, {"nothing": 0}, {"nothing": [0]}])
def test_the_background_is_no_region(background):
    assert regions_of({"labels": {**background, "organ": 1}}) == {"organ": (1,)}


def test_the_endings_are_those_of_nnunets_3d_readers():
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    known = {
        ending
        for reader in LIST_OF_IO_CLASSES
        if not reader.__name__.endswith("2DIO")
        for ending in reader.supported_file_endings
    }
    assert known <= set(ENDINGS)
