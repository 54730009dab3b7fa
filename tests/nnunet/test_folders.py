"""nnU-Net's folders: variables, data sets, dataset.json, and the one list of a folder's label maps."""

import json

import pytest

from nnunet_glims.errors import UsageError
from nnunet_glims.nnunet.dataset_json import read_dataset_json
from nnunet_glims.nnunet.folders import (
    PREPROCESSED,
    RAW,
    RESULTS,
    ignored_label,
    label_maps,
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


def test_two_label_maps_of_one_case_are_refused(tmp_path):
    (tmp_path / "CASE.nii").touch()
    (tmp_path / "CASE.nii.gz").touch()
    with pytest.raises(UsageError, match=r"case CASE has two label maps, CASE\.nii and CASE\.nii\.gz"):
        label_maps(tmp_path)


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
