"""`nnunet-glims submit`: what was converted comes back as it was released, and what is wrong is refused as a whole."""

import gzip
import shutil
import zipfile
from io import BytesIO

import nibabel
import numpy as np
import pytest

from nnunet_glims.cli import main
from tests.datasets import releases
from tests.test_files import largest_file

GEOMETRY = ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "pixdim", "qform_code", "sform_code")


def convert(kind, source, *options):
    assert main(["convert", kind, str(source), "-d", "137", "--workers", "1", *options]) == 0


def submit(*arguments, code=0):
    assert main(["submit", *map(str, arguments)]) == code


def submitted(path):
    """File name -> image."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: _image(archive.read(name)) for name in archive.namelist()}


def _image(content):
    return nibabel.Nifti1Image.from_stream(BytesIO(gzip.decompress(content)))


def labels_as_predictions(dataset, folder):
    shutil.copytree(dataset / "labelsTr", folder)
    cases = [file.name.removesuffix(".nii.gz") for file in sorted(folder.iterdir())]
    listed = folder.parent / "cases.txt"
    listed.write_text("".join(f"{case}\n" for case in cases))
    return cases, listed


@pytest.mark.parametrize("release", releases.BRATS)
def test_a_brats_release_converted_and_submitted_is_the_release(release, raw, tmp_path):
    source = releases.write_brats(tmp_path / "release", release)
    convert("brats", source)
    cases, listed = labels_as_predictions(raw / "Dataset137_BraTS", tmp_path / "predictions")
    out = tmp_path / "out.zip"
    challenge = ("--challenge", f"brats{release}", "--cases", listed)
    submit(tmp_path / "predictions", out, *challenge, "--dataset", raw / "Dataset137_BraTS")
    found = submitted(out)
    assert list(found) == [f"{case}.nii.gz" for case in cases] and len(cases) == 6
    for index, case in enumerate(cases):
        inside = source / releases.brats_folder(release, index, case)
        published = nibabel.load(next(path for path in inside.iterdir() if "seg" in path.name.lower()))
        image = found[f"{case}.nii.gz"]
        assert np.array_equal(np.asanyarray(image.dataobj), np.asanyarray(published.dataobj))
        assert image.get_data_dtype() == np.uint8
        assert all(np.array_equal(image.header[field], published.header[field]) for field in GEOMETRY)


@pytest.mark.parametrize("protocol", ["btcv13", "synapse8"])
def test_btcv_goes_back_to_its_own_labels_and_names(protocol, raw, tmp_path):
    source = releases.write_btcv(tmp_path / "release")
    convert("btcv", source, "--protocol", protocol, *(["--partial"] if protocol == "synapse8" else []))
    cases, listed = labels_as_predictions(raw / "Dataset137_BTCV", tmp_path / "predictions")
    out = tmp_path / "out.zip"
    dataset = ("--dataset", raw / "Dataset137_BTCV")
    submit(tmp_path / "predictions", out, "--challenge", "btcv", "--cases", listed, *dataset)
    found = submitted(out)
    assert list(found) == [f"label{case[3:]}.nii.gz" for case in cases]
    kept = [8, 4, 3, 2, 6, 11, 1, 7] if protocol == "synapse8" else range(14)
    for case in cases:
        published = np.asanyarray(nibabel.load(source / f"RawData/Training/label/label{case[3:]}.nii.gz").dataobj)
        expected = np.where(np.isin(published, list(kept)), published, 0)
        assert np.array_equal(np.asanyarray(found[f"label{case[3:]}.nii.gz"].dataobj), expected)


@pytest.fixture
def dataset(raw, tmp_path):
    """BraTS 2021 converted; its test case is the last."""
    convert("brats", releases.write_brats(tmp_path / "release", "2021"))
    return raw / "Dataset137_BraTS"


TEST_CASE = "BraTS2021_00006"


@pytest.fixture
def prediction(tmp_path):
    return releases.write(tmp_path / f"predictions/{TEST_CASE}.nii.gz", releases.labels((0, 1, 2, 3)).astype(np.uint8))


def test_the_data_sets_test_cases_are_expected(dataset, prediction, tmp_path, capsys):
    out = tmp_path / "out.zip"
    submit(prediction.parent, out, "--challenge", "brats2021", "--dataset", dataset)
    assert "1 cases" in capsys.readouterr().out
    (image,) = submitted(out).values()
    expected = releases.labels((0, 1, 2, 3))
    assert np.array_equal(np.asanyarray(image.dataobj), np.where(expected == 3, 4, expected))
    submit(prediction.parent, tmp_path / "again.zip", "--challenge", "brats2021", "--dataset", dataset)
    assert out.read_bytes() == (tmp_path / "again.zip").read_bytes()


def test_a_list_of_cases_suffices(prediction, tmp_path, capsys):
    (tmp_path / "cases.txt").write_text(f"\n {TEST_CASE}.nii.gz \n\n")
    submit(prediction.parent, tmp_path / "o.zip", "--challenge", "brats2023", "--cases", tmp_path / "cases.txt")
    assert "geometry were not checked" in capsys.readouterr().out
    (image,) = submitted(tmp_path / "o.zip").values()
    assert np.array_equal(np.asanyarray(image.dataobj), releases.labels((0, 1, 2, 3)))


def test_everything_wrong_is_in_one_list_and_nothing_is_written(dataset, tmp_path, capsys):
    folder = tmp_path / "predictions"
    good = releases.labels((0, 1, 2, 3)).astype(np.uint8)
    moved = releases.AFFINE.copy()
    moved[0, 3] += 1
    names = [f"BraTS2021_{number:05d}" for number in range(7)]
    releases.write(folder / f"{names[0]}.nii.gz", good)
    releases.write(folder / f"{names[1]}.nii.gz", good[:-1])
    releases.write(folder / f"{names[2]}.nii.gz", good, moved)
    releases.write(folder / f"{names[3]}.nii.gz", np.where(good == 3, 4, good))
    releases.write(folder / f"{names[4]}.nii.gz", good).write_bytes(b"no image")
    releases.write(folder / "another_case.nii.gz", good)
    (tmp_path / "cases.txt").write_text("\n".join(names[:6]))
    there = sorted(tmp_path.iterdir())
    arguments = (folder, tmp_path / "out.zip", "--challenge", "brats2021", "--dataset", dataset)
    submit(*arguments, "--cases", tmp_path / "cases.txt", code=2)
    message = capsys.readouterr().err
    assert "6 problems; nothing was written" in message
    for part in (
        f"{names[1]}: {folder / names[1]}.nii.gz: has 8×8×7 voxels, not 9×8×7",
        "has origin",
        "has labels 4; only 0, 1, 2, 3",
        f"{names[4]}: {folder / names[4]}.nii.gz: cannot be read",
        f"{names[5]}: there is no prediction",
        "another_case.nii.gz: no such case is expected",
    ):
        assert part in message
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--challenge", "brats2021"), "say which cases are expected"),
        (("--challenge", "brats2022", "--cases", "x"), "did you mean 'brats2023'"),
        (("--challenge", "brats2021", "--cases", "missing.txt"), "missing.txt: there is no such file"),
        (("--challenge", "brats2021", "--dataset", "missing"), "missing: there is no such folder"),
    ],
)
def test_wrong_use(arguments, message, prediction, tmp_path, capsys):
    submit(prediction.parent, tmp_path / "out.zip", *arguments, code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("listed", "message"), [("a\na\n", "'a' is there twice"), ("../a\n", "'../a'"), ("\n", "no case")]
)
def test_lists_of_cases_that_cannot_be(listed, message, prediction, tmp_path, capsys):
    (tmp_path / "cases.txt").write_text(listed)
    arguments = ("--challenge", "brats2021", "--cases", tmp_path / "cases.txt")
    submit(prediction.parent, tmp_path / "out.zip", *arguments, code=2)
    assert message in capsys.readouterr().err


def test_another_challenges_data_set_is_refused(dataset, prediction, tmp_path, capsys):
    submit(prediction.parent, tmp_path / "out.zip", "--challenge", "brats2023", "--dataset", dataset, code=2)
    assert "was converted from BraTS 2021" in capsys.readouterr().err


def test_a_data_set_without_test_cases_needs_a_list(dataset, prediction, tmp_path, capsys):
    shutil.rmtree(dataset / "imagesTs")
    submit(prediction.parent, tmp_path / "out.zip", "--challenge", "brats2021", "--dataset", dataset, code=2)
    assert "give it with --cases" in capsys.readouterr().err


def test_an_archive_that_is_there_stays(dataset, prediction, tmp_path, capsys):
    (tmp_path / "out.zip").write_text("mine")
    submit(prediction.parent, tmp_path / "out.zip", "--challenge", "brats2021", "--dataset", dataset, code=2)
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "out.zip").read_text() == "mine"


def test_a_full_disk_ends_with_1_and_leaves_no_zip(dataset, prediction, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    with largest_file(100):
        submit(prediction.parent, tmp_path / "out.zip", "--challenge", "brats2021", "--dataset", dataset, code=1)
    message = capsys.readouterr().err
    assert f"{tmp_path / 'out.zip'}: cannot be written: File too large" in message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.realdata
def test_real_cases_come_back_as_they_were_released(real_cases, raw, tmp_path):
    convert("brats", real_cases / "brats2018")
    cases, listed = labels_as_predictions(raw / "Dataset137_BraTS", tmp_path / "predictions")
    arguments = ("--challenge", "brats2018", "--cases", listed, "--dataset", raw / "Dataset137_BraTS")
    submit(tmp_path / "predictions", tmp_path / "out.zip", *arguments)
    for case, image in zip(cases, submitted(tmp_path / "out.zip").values()):
        published = nibabel.load(real_cases / f"brats2018/{case}/{case}_seg.nii.gz")
        assert np.array_equal(np.asanyarray(image.dataobj), np.asanyarray(published.dataobj))
        assert np.array_equal(image.affine, published.affine)


def test_a_cut_prediction_is_damaged_data(dataset, prediction, tmp_path, capsys):
    prediction.write_bytes(prediction.read_bytes()[:-20])
    arguments = (prediction.parent, tmp_path / "out.zip", "--challenge", "brats2021", "--dataset", dataset)
    submit(*arguments, code=1)
    assert f"{prediction}: cannot be read" in capsys.readouterr().err
