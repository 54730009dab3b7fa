"""The script of the tutorial's data, given the layouts that people have: it writes all cases or refuses."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks import real_cases


def image(path, seed, labels=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, 3, (6, 5, 4)).astype(np.uint8) if labels else rng.random((6, 5, 4)).astype(np.float32)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(path)


def decathlon(folder, images="imagesTr", labels="labelsTr"):
    """Task04_Hippocampus as it is published, with the metadata files of macOS that are in its archive."""
    for number in (1, 3, 4):
        image(folder / f"{images}/hippocampus_{number:03d}.nii.gz", number)
        image(folder / f"{labels}/hippocampus_{number:03d}.nii.gz", number, labels=True)
        (folder / f"{images}/._hippocampus_{number:03d}.nii.gz").write_bytes(b"metadata")
    image(folder / "imagesTs/hippocampus_002.nii.gz", 2)
    (folder / "dataset.json").write_text('{"labels": {"0": "background", "1": "Anterior"}}')
    return folder


LAYOUTS = {
    "the folder above": lambda at: decathlon(at / "Task04_Hippocampus").parent,
    "the folder": lambda at: decathlon(at / "Task04_Hippocampus"),
    "its archive": lambda at: Path(shutil.make_archive(str(at / "packed"), "tar", decathlon(at / "in"))),
    "images and labels": lambda at: decathlon(at / "hippocampus", "images", "labels").parent,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_hippocampus_gives_its_three_cases(layout, tmp_path):
    raw = tmp_path / "raw"
    assert real_cases.main([str(LAYOUTS[layout](tmp_path / "cases")), str(raw)]) == 0
    assert [path.name for path in raw.iterdir()] == ["Dataset004_Hippocampus"]
    for folder, end in (("imagesTr", "_0000"), ("labelsTr", "")):
        names = sorted(path.name for path in (raw / "Dataset004_Hippocampus" / folder).iterdir())
        assert names == [f"hippocampus_{number:03d}{end}.nii.gz" for number in (1, 3, 4)]
    label = sitk.ReadImage(str(raw / "Dataset004_Hippocampus/labelsTr/hippocampus_003.nii.gz"))
    assert np.array_equal(
        sitk.GetArrayFromImage(label).T, np.random.default_rng(3).integers(0, 3, (6, 5, 4)).astype(np.uint8)
    )


def without_label(cases):
    (cases / "labelsTr/hippocampus_003.nii.gz").unlink()


def cut_off(cases):
    file = cases / "labelsTr/hippocampus_003.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])


def without_cases(cases):
    shutil.rmtree(cases / "imagesTr")
    shutil.rmtree(cases / "labelsTr")


def of_another_task(cases):
    for file in cases.rglob("*.nii.gz"):
        file.rename(file.with_name(file.name.replace("hippocampus", "prostate")))


@pytest.mark.parametrize(
    ("damage", "message", "code"),
    [
        (without_label, "hippocampus_003 needs one image and one label map", 1),
        (cut_off, "hippocampus_003.nii.gz: cannot be read", 1),
        (without_cases, "has none of the cases", 2),
        (of_another_task, "nnUNetv2_convert_MSD_dataset", 2),
    ],
)
def test_what_is_incomplete_or_unknown_is_refused_and_nothing_is_written(damage, message, code, tmp_path, capsys):
    cases = decathlon(tmp_path / "Task04_Hippocampus")
    damage(cases)
    assert real_cases.main([str(cases), str(tmp_path / "raw")]) == code
    assert message in capsys.readouterr().err
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_taken_number_is_refused(tmp_path, capsys):
    (tmp_path / "raw/Dataset004_Other").mkdir(parents=True)
    assert real_cases.main([str(decathlon(tmp_path / "in")), str(tmp_path / "raw")]) == 2
    assert "taken by Dataset004_Other" in capsys.readouterr().err
