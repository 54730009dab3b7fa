"""What commands that list cases do with two files of one case, every ending of nnU-Net, odd names, and files passed over."""

import gzip
import json
import os
import shutil
import zipfile

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_glims.cli import main

CASE = "BraTS2021_00000"


def labels(shift=0):
    voxels = np.zeros((6, 12, 14), np.uint8)
    voxels[1:5, 3:9, 3 + shift : 9 + shift] = 1
    voxels[2:4, 4:8, 4 + shift : 8 + shift] = 3
    return voxels


def write(path, voxels):
    """Write (Z, Y, X) voxels of 1 mm by a library that fits the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.lower().endswith((".tif", ".tiff")):
        tifffile.imwrite(path, voxels, compression="zlib")
        path.with_suffix(".json").write_text('{"spacing": [1, 1, 1]}')
    elif ".nii" in path.name.lower():
        content = nibabel.Nifti1Image(voxels.T, np.eye(4)).to_bytes()
        path.write_bytes(gzip.compress(content) if path.name.lower().endswith(".gz") else content)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    return path


def run(*arguments):
    return main([*map(str, arguments)])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".tif", ".tiff", ".NII.GZ"])
def test_every_ending_of_nnunet_is_evaluated_without_dataset_json(tmp_path, ending):
    write(tmp_path / f"truth/a{ending}", labels())
    write(tmp_path / f"predicted/a{ending}", labels(2))
    out = tmp_path / "out"
    assert (
        run("evaluate", tmp_path / "truth", tmp_path / "predicted", "--regions", "brats", "--workers", 1, "-o", out)
        == 0
    )
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["cases"], summary["missing_predictions"], summary["other_files"]) == (1, [], [])
    expected = 2 * np.logical_and(labels() > 0, labels(2) > 0).sum() / (2 * (labels() > 0).sum())
    assert summary["statistics"]["whole_tumor"]["dice"]["mean"] == pytest.approx(expected)
    assert summary["statistics"]["whole_tumor"]["hd95"]["mean"] == pytest.approx(2)


@pytest.mark.parametrize("second", [f"{CASE}.nii", f"{CASE}.NII.GZ", f"{CASE}.mha"])
@pytest.mark.parametrize("command", ["evaluate", "evaluate the truth", "submit", "postprocess", "model"])
def test_two_files_of_one_case_are_refused(tmp_path, monkeypatch, capsys, command, second):
    predicted, truth = tmp_path / "predicted", tmp_path / "truth"
    model = tmp_path / "results/Dataset001_A/T__P__3d_fullres"
    for folder in (predicted, truth, model / "fold_0/validation"):
        write(folder / f"{CASE}.nii.gz", labels())
    doubled = {"evaluate the truth": truth, "model": model / "fold_0/validation"}.get(command, predicted)
    write(doubled / second, 0 * labels())
    (tmp_path / "cases.txt").write_text(CASE)
    (tmp_path / "rules.json").write_text(json.dumps({"components": [{"label": 3, "smaller_than": 9, "becomes": 1}]}))
    dataset = {"channel_names": {"0": "x"}, "labels": {"background": 0, "a": 1, "b": 3}, "file_ending": ".nii.gz"}
    (model / "dataset.json").write_text(json.dumps(dataset))
    (model / "plans.json").write_text(
        json.dumps({"dataset_name": "Dataset001_A", "plans_name": "P", "configurations": {}})
    )
    out = tmp_path / "out.zip"
    arguments = {
        "evaluate": ["evaluate", truth, predicted, "--regions", "brats", "-o", out],
        "submit": ["submit", predicted, out, "--challenge", "brats2021", "--cases", tmp_path / "cases.txt"],
        "postprocess": ["postprocess", predicted, "-o", out, "--preset", tmp_path / "rules.json"],
        "model": ["evaluate", "--model", model, "--truth", truth, "-o", out],
    }[command.split()[0]]
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert f"case {CASE} has two files, " in message and f"{CASE}.nii.gz" in message and second in message
    assert not out.exists()


def test_two_images_of_one_case_are_no_geometry_for_a_submission(tmp_path, capsys):
    write(tmp_path / f"predicted/{CASE}.nii.gz", labels())
    for ending in (".nii", ".nii.gz"):
        write(tmp_path / f"Dataset001_A/imagesTs/{CASE}_0000{ending}", labels())
    arguments = ["--challenge", "brats2021", "--dataset", tmp_path / "Dataset001_A"]
    assert run("submit", tmp_path / "predicted", tmp_path / "out.zip", *arguments) == 2
    assert "has two files" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Background", "BACKGROUND", "nothing"])
def test_the_background_is_no_region(tmp_path, name):
    for folder in ("truth", "predicted"):
        write(tmp_path / folder / "a.nii.gz", labels())
    dataset = {"channel_names": {"0": "x"}, "labels": {name: 0, "a": 1, "b": 3}, "file_ending": ".nii.gz"}
    (tmp_path / "truth/dataset.json").write_text(json.dumps(dataset))
    assert run("evaluate", tmp_path / "truth", tmp_path / "predicted", "--workers", 1) == 0
    assert list(json.loads((tmp_path / "predicted/evaluation/summary.json").read_text())["regions"]) == ["a", "b"]


def test_files_that_were_passed_over_are_named(tmp_path, capsys):
    for folder in ("truth", "predicted"):
        write(tmp_path / f"{folder}/{CASE}.nii.gz", labels())
    write(tmp_path / "predicted/other.nii.gz", labels())
    for name in (f"{CASE}.nii.gz.part", "notes.txt"):
        (tmp_path / "predicted" / name).touch()
    arguments = ["--regions", "brats", "--workers", 1]
    assert run("evaluate", tmp_path / "truth", tmp_path / "predicted", *arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{CASE}.nii.gz.part" in shown and "notes.txt" in shown and "no true label map: other.nii.gz" in shown
    assert run("leaderboard", f"a={tmp_path / 'predicted'}", "-o", tmp_path / "out", "--cases", 0) == 0
    sentence = f"a: the evaluation passed over 3 files: other.nii.gz, {CASE}.nii.gz.part, notes.txt."
    assert sentence in capsys.readouterr().out and sentence in (tmp_path / "out/leaderboard.md").read_text()
    (tmp_path / "predicted/other.nii.gz").unlink()
    (tmp_path / "cases.txt").write_text(CASE)
    arguments = ["--challenge", "brats2023", "--cases", tmp_path / "cases.txt"]
    assert run("submit", tmp_path / "predicted", tmp_path / "out.zip", *arguments) == 0
    assert f"passed over, since they are no label maps: {CASE}.nii.gz.part, notes.txt" in capsys.readouterr().out
    assert zipfile.ZipFile(tmp_path / "out.zip").namelist() == [f"{CASE}.nii.gz"]


def names_in_two_forms(tmp_path):
    write(tmp_path / "truth/Cafe\u0301.nii.gz", labels())
    write(tmp_path / "predicted/Caf\u00e9.nii.gz", labels())


def test_names_are_the_same_in_both_forms_of_unicode(tmp_path):
    names_in_two_forms(tmp_path)
    assert run("evaluate", tmp_path / "truth", tmp_path / "predicted", "--regions", "brats", "--workers", 1) == 0
    summary = json.loads((tmp_path / "predicted/evaluation/summary.json").read_text())
    assert (summary["cases"], summary["missing_predictions"], summary["predictions_without_truth"]) == (1, [], [])


@pytest.fixture
def evaluated(tmp_path):
    """A folder of predictions that were evaluated, and the time when one was written."""
    for number in range(5):
        write(tmp_path / f"truth/case_{number}.nii", labels())
        write(tmp_path / f"predicted/case_{number}.nii", labels(number % 2))
    (tmp_path / "predicted/case_4.nii").unlink()
    assert run("evaluate", tmp_path / "truth", tmp_path / "predicted", "--regions", "brats", "--workers", 1) == 0
    return tmp_path / "predicted"


def with_the_same_size_and_time(folder):
    stat = (folder / "case_1.nii").stat()
    write(folder / "case_1.nii", labels(3))
    os.utime(folder / "case_1.nii", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (folder / "case_1.nii").stat().st_size == stat.st_size


def swapped(folder):
    for source, target in (("case_0", "x"), ("case_1", "case_0"), ("x", "case_1")):
        os.rename(folder / f"{source}.nii", folder / f"{target}.nii")


def predicted_later(folder):
    write(folder / "case_4.nii", labels())


def with_another_ending(folder):
    (folder / "case_1.nii").unlink()
    write(folder / "case_1.nii.gz", labels(3))


def removed(folder):
    (folder / "case_1.nii").unlink()


def truth(folder):
    write(folder.parent / "truth/case_0.nii", labels(3))


@pytest.mark.parametrize(
    ("change", "case"),
    [
        (with_the_same_size_and_time, "case_1"),
        (swapped, "case_0"),
        (predicted_later, "case_4"),
        (with_another_ending, "case_1"),
        (removed, "case_1"),
        (truth, "case_0"),
    ],
)
def test_a_leaderboard_notices_label_maps_that_changed(evaluated, tmp_path, capsys, change, case):
    command = ["leaderboard", f"a={evaluated}", "-o", tmp_path / "out", "--cases", 0]
    change(evaluated)
    assert run(*command) == 2
    message = capsys.readouterr().err
    assert f"of case {case} " in message and "run nnunet-glims evaluate again" in message
    assert not (tmp_path / "out").exists()
    assert run("evaluate", tmp_path / "truth", evaluated, "--regions", "brats", "--workers", 1) == 0
    assert run(*command) == 0


def touched(folder):
    for file in folder.glob("*.nii"):
        os.utime(file)


def copied(folder):
    for file in folder.glob("*.nii"):
        shutil.copyfile(file, folder / "copy")
        os.replace(folder / "copy", file)


def all_removed(folder):
    for file in folder.glob("*.nii"):
        file.unlink()


@pytest.mark.parametrize("change", [touched, copied, all_removed])
def test_a_leaderboard_takes_label_maps_that_are_the_same_or_elsewhere(evaluated, tmp_path, change):
    change(evaluated)
    assert run("leaderboard", f"a={evaluated}", "-o", tmp_path / "out", "--cases", 0) == 0
