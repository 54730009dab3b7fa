"""Published splits are whole, and one's own fit the data set, by the command."""

import json

import pytest

from tests.datasets import releases
from tests.datasets.test_conversion import convert, untouched

PUBLISHED = (*range(1, 11), *range(21, 41))
SPLITS = {
    ("--split", "24-6"): set(range(35, 41)),
    ("--protocol", "synapse8"): {1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38},
}
"""Options -> numbers of the cases that the published split validates on."""


@pytest.mark.parametrize("options", SPLITS)
def test_published_splits_of_btcv(options, raw, tmp_path, capsys):
    convert("btcv", releases.write_btcv(tmp_path / "release", PUBLISHED), *options)
    (fold,) = json.loads((raw / "Dataset137_BTCV/splits_final.json").read_text())
    assert {int(name[3:]) for name in fold["val"]} == SPLITS[options]
    assert {int(name[3:]) for name in fold["train"]} == set(PUBLISHED) - SPLITS[options]
    assert capsys.readouterr().out.splitlines()[-1].endswith("30 training cases, 1 test cases")


@pytest.mark.parametrize(("options", "missing"), list(zip(SPLITS, (35, 9), strict=True)))
def test_published_splits_are_not_made_of_fewer_cases_unasked(options, missing, raw, tmp_path, capsys):
    source = releases.write_btcv(tmp_path / "release", PUBLISHED)
    (source / f"RawData/Training/label/label{missing:04d}.nii.gz").unlink()
    convert("btcv", source, *options, code=2)
    message = " ".join(capsys.readouterr().err.split())
    assert (
        f"needs 1 cases with a segmentation that are not there: img{missing:04d}" in message and "--partial" in message
    )
    assert untouched(raw)
    convert("btcv", source, *options, "--partial")
    (fold,) = json.loads((raw / "Dataset137_BTCV/splits_final.json").read_text())
    assert {int(name[3:]) for name in fold["val"]} == SPLITS[options] - {missing}
    assert len(fold["train"]) + len(fold["val"]) == 29
    assert capsys.readouterr().out.splitlines()[-1].startswith("29 of 30 cases")


def test_a_case_that_is_skipped_is_missing_in_the_published_split(raw, tmp_path, capsys):
    source = releases.write_btcv(tmp_path / "release", PUBLISHED)
    (source / "RawData/Training/label/label0036.nii.gz").write_bytes(b"")
    convert("btcv", source, "--split", "24-6", "--skip-bad", code=2)
    assert "not there: img0036" in capsys.readouterr().err and untouched(raw)


@pytest.mark.parametrize(("numbers", "part"), [(range(35, 41), "train"), (range(5, 8), "validate")])
def test_a_published_split_never_has_an_empty_part(numbers, part, raw, tmp_path, capsys):
    convert("btcv", releases.write_btcv(tmp_path / "release", numbers), "--split", "24-6", "--partial", code=2)
    assert f"no case of the published split to {part} on" in capsys.readouterr().err and untouched(raw)


OWN_SPLITS = {
    "{}": "a list is wanted",
    "[]": "at least 1",
    "null": "a list is wanted",
    "[[]]": "0: ",
    '[{"train": ["img0001"]}]': "0.val: this key is required",
    '[{"train": ["img0001"], "val": []}]': "fold 0 has no cases in 'val'",
    '[{"train": "img0001", "val": ["img0002"]}]': "0.train: a list is wanted",
    '[{"train": [1], "val": ["img0002"]}]': "0.train.0: a text is wanted",
    '[{"train": ["img0001"], "val": ["img0001"]}]': "fold 0 has img0001 twice",
    '[{"train": ["img0001", "img0001"], "val": ["img0002"]}]': "fold 0 has img0001 twice",
    '[{"train": ["img0001", "img0099"], "val": ["img0002"]}]': "names img0099",
    '[{"train": ["img0001"], "val": ["img0061"]}]': "names img0061: the data set has no such training cases",
}


@pytest.mark.parametrize("content", OWN_SPLITS)
def test_splits_of_ones_own_of_another_form_are_refused(content, raw, tmp_path, capsys):
    source = releases.write_btcv(tmp_path / "release", range(1, 4))
    (tmp_path / "own.json").write_text(content)
    convert("btcv", source, "--split", str(tmp_path / "own.json"), code=2)
    message = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path / 'own.json'}" in message and OWN_SPLITS[content] in message
    assert untouched(raw)


def test_a_split_of_ones_own(raw, tmp_path):
    own = tmp_path / "own.json"
    own.write_text('[{"train": ["img0001"], "val": ["img0002"]}]')
    convert("btcv", releases.write_btcv(tmp_path / "release", range(1, 4)), "--split", str(own))
    assert json.loads((raw / "Dataset137_BTCV/splits_final.json").read_text()) == json.loads(own.read_text())
