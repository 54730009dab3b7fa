"""Commands on images that are damaged or not finite: they name the file, write nothing, and end with exit code 1."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_glims.cli import main
from tests.export import head, write_case, write_model_folder
from tests.postprocessing.conftest import ORGANS, smooth, write_prediction
from tests.report.conftest import evaluated  # noqa: F401


def stored(path, labels, compressed=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path), compressed)
    return path


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut off":
        del content[len(content) // 2 :]
    else:  # a byte amid the voxels
        content[-len(content) // 4] ^= 8
    path.write_bytes(content)


def labels():
    found = np.zeros((12, 14, 16), np.uint8)
    found[2:9, 3:10, 4:12] = np.random.default_rng(0).integers(1, 3, (7, 7, 8))
    return found


def not_a_number(path):
    """Write an image again, with nibabel, with two voxels that are NaN and one that is infinite."""
    image = nibabel.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[3, 3, 3:6] = np.nan, np.nan, np.inf
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


DAMAGES = [
    *((ending, "cut off") for ending in (".nii.gz", ".nii", ".mha", ".nrrd")),
    *((ending, "another byte") for ending in (".nii.gz", ".mha", ".nrrd")),
]


@pytest.mark.parametrize("side", ["truth", "predicted"])
@pytest.mark.parametrize(("ending", "how"), DAMAGES)
def test_evaluate(ending, how, side, tmp_path, capsys):
    for folder in ("truth", "predicted"):
        stored(tmp_path / folder / f"one{ending}", labels())
        stored(tmp_path / folder / f"two{ending}", labels())
    (tmp_path / "truth/dataset.json").write_text(json.dumps({**ORGANS, "file_ending": ending}))
    damage(tmp_path / side / f"one{ending}", how)
    assert main(["evaluate", str(tmp_path / "truth"), str(tmp_path / "predicted"), "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert f"failed one: {tmp_path / side / f'one{ending}'}: cannot be read: " in out
    table = (tmp_path / "predicted/evaluation/metrics.csv").read_text()
    assert "two" in table and "one" not in table


def test_evaluate_values_that_are_not_finite(tmp_path, capsys):
    for folder in ("truth", "predicted"):
        stored(tmp_path / folder / "one.nii.gz", labels())
    (tmp_path / "truth/dataset.json").write_text(json.dumps(ORGANS))
    not_a_number(tmp_path / "predicted/one.nii.gz")
    assert main(["evaluate", str(tmp_path / "truth"), str(tmp_path / "predicted"), "--workers", "1"]) == 1
    assert "predicted/one.nii.gz: 2 NaN and 1 infinite of 2688 values" in capsys.readouterr().out


def postprocess(folder, *options):
    rules = folder.parent / "rules.json"
    rules.write_text(json.dumps({"components": [{"label": 1, "smaller_than": 5}]}))
    rules = rules if not options else options[0]
    return main(["postprocess", str(folder), "-o", f"{folder}_out", "--preset", str(rules), "--workers", "1"])


@pytest.mark.parametrize(("ending", "how"), DAMAGES)
def test_postprocess_label_maps(ending, how, tmp_path, capsys):
    for name in ("one", "two"):
        stored(tmp_path / f"model/{name}{ending}", labels())
    damage(tmp_path / f"model/two{ending}", how)
    assert postprocess(tmp_path / "model") == 1
    assert f"{tmp_path / f'model/two{ending}'}: cannot be read: " in capsys.readouterr().err
    assert not (tmp_path / "model_out").exists()


def with_values(values):
    """A change of a file of probabilities: these values stand at its beginning."""

    def change(path):
        found = dict(np.load(path))["probabilities"]
        found[0, 0, 0, : len(values)] = values
        np.savez(path, probabilities=found)

    return change


def claiming_fewer_slices(path):
    """The array's header states fewer slices than the file holds."""
    found = np.load(path)["probabilities"]
    np.savez(path, probabilities=found)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(3, 14, 20, 18)", b"(3, 13, 20, 18)"))


PROBABILITIES = {
    "cut off": (lambda path: damage(path, "cut off"), 1, "damaged"),
    "another byte": (lambda path: damage(path, "another byte"), 1, "damaged"),
    "NaN": (with_values([np.nan, np.nan, -np.inf]), 1, "2 NaN and 1 infinite of 15120 values"),
    "logits": (with_values([-7.5, 9]), 2, "values from -7.5 to 9, which are no probabilities"),
    "another header": (claiming_fewer_slices, 2, "has 18×20×13 voxels, not 18×20×14"),
    "text": (lambda path: path.write_text("hello"), 1, "damaged"),
    "empty": (lambda path: path.write_bytes(b""), 1, "damaged"),
}


@pytest.mark.parametrize("kind", PROBABILITIES)
def test_postprocess_probabilities(kind, tmp_path, capsys):
    change, code, message = PROBABILITIES[kind]
    for seed, name in enumerate(("one", "two")):
        write_prediction(tmp_path / "model", name, smooth(seed))
    change(tmp_path / "model/two.npz")
    assert postprocess(tmp_path / "model", "glims_brats2023") == code
    err = capsys.readouterr().err
    assert str(tmp_path / "model/two.npz") in err and message in err
    assert not (tmp_path / "model_out").exists()


def test_any_byte_of_probabilities(tmp_path, capsys):
    write_prediction(tmp_path / "model", "one", smooth(0, shape=(6, 8, 7)))
    path = tmp_path / "model/one.npz"
    content = path.read_bytes()
    assert postprocess(tmp_path / "model", "glims_brats2023") == 0
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "model_out/one.nii.gz")))
    for at in [*range(0, 60), *range(60, len(content) - 120, 101), *range(len(content) - 120, len(content))][::9]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 32]) + content[at + 1 :])
        shutil.rmtree(tmp_path / "model_out", ignore_errors=True)
        if postprocess(tmp_path / "model", "glims_brats2023") == 0:
            found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "model_out/one.nii.gz")))
            assert np.array_equal(found, expected), at
        else:
            assert "one.npz" in capsys.readouterr().err, at


@pytest.mark.parametrize("how", ["cut off", "another byte"])
def test_slices_of_a_leaderboard(how, evaluated, tmp_path, capsys):  # noqa: F811
    folder = tmp_path / "moved"
    shutil.copytree(evaluated, folder)
    for record in folder.glob("*/evaluation/cases.jsonl"):
        record.write_text(record.read_text().replace(str(evaluated), str(folder)))
    for path in folder.glob("imagesTs/*_0001.nii.gz"):
        damage(path, how)
    entries = [f"{name}={folder / name}" for name in ("good", "poor")]
    assert main(["leaderboard", *entries, "-o", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert f"{folder}/imagesTs/case_" in err and "cannot be read: " in err
    assert not (tmp_path / "out/leaderboard.html").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model_folder(tmp_path_factory.mktemp("model"))


IMAGES = {
    "cut off": (lambda path: damage(path, "cut off"), "cannot be read: "),
    "another byte": (lambda path: damage(path, "another byte"), "cannot be read: "),
    "NaN": (not_a_number, "2 NaN and 1 infinite of "),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_explain(kind, model, tmp_path, capsys):
    for name in ("one", "two"):
        write_case(tmp_path / "images", name, head())
    change, message = IMAGES[kind]
    path = tmp_path / "images/two_0001.nii.gz"
    change(path)
    command = ["explain", str(model), str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert main(command) == 1
    assert f"{path}: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", IMAGES)
def test_export_refuses_the_image_it_is_compared_on(kind, model, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    dataset = json.loads((model / "plans.json").read_text())["dataset_name"]
    write_case(tmp_path / dataset / "imagesTr", "one", head())
    change, message = IMAGES[kind]
    path = tmp_path / dataset / "imagesTr/one_0001.nii.gz"
    change(path)
    assert main(["export", str(model), str(tmp_path / "out")]) == 1
    assert f"{path}: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # NumPy leaves the cut file open
def test_export_refuses_preprocessed_cases_that_are_not_finite(model, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    plans = json.loads((model / "plans.json").read_text())
    identifier = plans["configurations"]["3d_fullres"]["data_identifier"]
    folder = tmp_path / plans["dataset_name"] / identifier
    folder.mkdir(parents=True)
    image = head()
    image[1, 2, 3, 4:6] = np.nan
    np.savez(folder / "case_7.npz", data=image, seg=np.zeros((1, *image.shape[1:]), np.int8))
    (folder / "case_7.pkl").write_bytes(b"\x80\x04}\x94.")
    assert main(["export", str(model), str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert "case_7: 2 NaN of " in err and plans["dataset_name"] in err
    (folder / "case_7.npz").write_bytes((folder / "case_7.npz").read_bytes()[:300])
    assert main(["export", str(model), str(tmp_path / "out")]) == 1
    assert "case_7: this preprocessed case cannot be read" in capsys.readouterr().err


def test_export_refuses_a_patch_that_the_network_cannot_compute(tmp_path, monkeypatch, capsys):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(name, raising=False)
    folder = write_model_folder(tmp_path, patch_size=[4, 4, 4])
    assert main(["export", str(folder), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "cannot compute the plans' patch of 4×4×4 voxels" in err and "larger patch" in err
    assert not (tmp_path / "out").exists()
