"""From releases to nnU-Net's raw layout, by the command."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning import verify_dataset_integrity

from nnunet_glims.cli import main
from nnunet_glims.datasets import conversion, splits
from nnunet_glims.demo.phantom import write_raw_dataset
from nnunet_glims.releases import brats as facts
from tests.datasets import releases
from tests.test_files import largest_file


def convert(kind, source, *options, code=0):
    assert main(["convert", kind, str(source), "-d", "137", "--workers", "1", *options]) == code


class Threads:
    """nnU-Net's pool in this process: starting another one takes six seconds."""

    @staticmethod
    def get_context(_):
        return SimpleNamespace(Pool=ThreadPool)


def nnunet_accepts(folder):
    """Raise what nnU-Net raises about a data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_dataset_integrity, "multiprocessing", Threads)
        verify_dataset_integrity.verify_dataset_integrity(str(folder), num_processes=1)


def dataset_json(folder):
    return json.loads((folder / "dataset.json").read_text())


def voxels(path):
    return np.asanyarray(nibabel.load(path).dataobj)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def untouched(raw):
    return list(raw.iterdir()) == []


@pytest.mark.parametrize("release", releases.BRATS)
def test_a_brats_release_becomes_a_data_set_that_nnunet_accepts(release, raw, tmp_path, capsys):
    source = releases.write_brats(tmp_path / "release", release)
    convert("brats", source)
    assert f"BraTS {release}: 7 cases, 6 of them with a segmentation" in capsys.readouterr().out
    folder = raw / "Dataset137_BraTS"
    nnunet_accepts(folder)
    names = releases.brats_names(release)
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == [f"{name}.nii.gz" for name in names[:-1]]
    assert sorted(path.name for path in (folder / "imagesTs").iterdir()) == [
        f"{names[-1]}_{channel:04d}.nii.gz" for channel in range(4)
    ]
    described = dataset_json(folder)
    assert described["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    assert described["release"] == f"BraTS {release}"
    for index, name in enumerate(names[:-1]):
        inside = source / releases.brats_folder(release, index, name)
        published = voxels(next(path for path in inside.iterdir() if "seg" in path.name.lower()))
        found = voxels(folder / f"labelsTr/{name}.nii.gz")
        assert np.array_equal(found, np.where(published == 4, 3, published))
        assert np.array_equal(voxels(folder / f"imagesTr/{name}_0003.nii.gz"), releases.image(10 * index + 3))


def test_nnunet_puts_the_regions_back_together_as_the_labels_were(raw, tmp_path):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    convert("brats", releases.write_brats(tmp_path / "release", "2021"))
    described = dataset_json(raw / "Dataset137_BraTS")
    manager = LabelManager(described["labels"], described["regions_class_order"])
    published = releases.labels((0, 1, 2, 4))
    whole, core, enhancing = published > 0, np.isin(published, (1, 4)), published == 4
    back = manager.convert_logits_to_segmentation(np.stack([whole, core, enhancing]).astype(np.float32) * 20 - 10)
    inverse = json.loads((raw / "Dataset137_BraTS/conversion_report.json").read_text())["label_in_release"]
    assert np.array_equal(np.vectorize(lambda label: inverse[str(label)])(back), published)


@pytest.mark.parametrize("source_kind", ["2021", "2023"])
def test_voxels_stay_at_their_places_in_the_world(source_kind, raw, tmp_path):
    source = releases.write_brats(tmp_path / "release", source_kind)
    convert("brats", source)
    for converted in sorted((raw / "Dataset137_BraTS").rglob("*.nii.gz")):
        name = converted.name.removesuffix(".nii.gz")
        case = name if converted.parent.name == "labelsTr" else name[:-5]
        like = next(source.rglob(f"{case}*"))
        original = next(path for path in like.rglob("*.nii.gz")) if like.is_dir() else like
        before, after = nibabel.load(original).header, nibabel.load(converted).header
        for field in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "pixdim", "sform_code"):
            assert np.array_equal(before[field], after[field])
        ours, its = sitk.ReadImage(str(converted)), sitk.ReadImage(str(original))
        for index in ((0, 0, 0), (3, 5, 2), (8, 7, 6)):
            assert ours.TransformIndexToPhysicalPoint(index) == its.TransformIndexToPhysicalPoint(index)


def test_nnunet_does_not_change_what_we_know_about_a_release(raw, tmp_path):
    before = json.dumps(dict(facts.LABELS))
    convert("brats", releases.write_brats(tmp_path / "release", "2021"))
    write_raw_dataset(tmp_path / "demo", cases=1, test_cases=0, shape=(28, 28, 28))
    assert {type(labels) for labels in facts.LABELS.values()} == {int, list}
    assert json.dumps(dict(facts.LABELS)) == before


def test_channels_are_chosen_and_ordered(raw, tmp_path):
    convert(
        "brats", releases.write_brats(tmp_path / "release", "2021"), "--channels", "flair,t1ce,t2", "--name", "Three"
    )
    folder = raw / "Dataset137_Three"
    assert dataset_json(folder)["channel_names"] == {"0": "FLAIR", "1": "T1ce", "2": "T2"}
    assert np.array_equal(voxels(folder / "imagesTr/BraTS2021_00000_0000.nii.gz"), releases.image(3))


@pytest.mark.parametrize("pack", ["zip", "tar", "gztar"])
def test_an_archive_need_not_be_unpacked(pack, raw, tmp_path):
    source = releases.write_brats(tmp_path / "release", "2021")
    convert("brats", source)
    unpacked = contents(raw / "Dataset137_BraTS")
    shutil.rmtree(raw / "Dataset137_BraTS")
    convert("brats", shutil.make_archive(str(tmp_path / "packed"), pack, source))
    assert contents(raw / "Dataset137_BraTS") == unpacked
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]


def test_uncompressed_releases_stay_uncompressed(raw, tmp_path):
    convert("brats", releases.write_brats(tmp_path / "release", "2020", ending=".nii"))
    folder = raw / "Dataset137_BraTS"
    assert dataset_json(folder)["file_ending"] == ".nii"
    nnunet_accepts(folder)


def test_links_point_to_the_release(raw, tmp_path):
    source = releases.write_brats(tmp_path / "release", "2023")
    convert("brats", source, "--link")
    files = list((raw / "Dataset137_BraTS").rglob("*.nii.gz"))
    assert files and all(path.is_symlink() and path.resolve().is_relative_to(source.resolve()) for path in files)


DAMAGES = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-40]), "t1", "cannot be read"),
    "no NIfTI": (lambda p: p.write_text("<html>404</html>"), "t1", "cannot be read"),
    "4D": (lambda p: releases.write(p, np.zeros((*releases.SHAPE, 2), np.int16)), "t2", "has 4 axes (9×8×7×2), not 3"),
    "shape": (lambda p: releases.write(p, np.zeros((9, 8, 6), np.int16)), "flair", "has 9×8×6 voxels, not 9×8×7"),
    "origin": (lambda p: releases.write(p, releases.image(0), shifted()), "t2", "has origin"),
    "spacing": (lambda p: releases.write(p, releases.image(0), stretched()), "t2", "has spacing"),
    "NaN": (lambda p: releases.write(p, with_nan()), "flair", "1 NaN of 504 values"),
    "label": (lambda p: releases.write(p, releases.labels((0, 1, 2, 3, 7))), "seg", "has labels 3, 7; only 0, 1, 2, 4"),
    "missing": (lambda p: p.unlink(), "t1ce", "no file for t1ce"),
}  # fmt: skip


def shifted():
    affine = releases.AFFINE.copy()
    affine[0, 3] += 1
    return affine


def stretched():
    return releases.AFFINE @ np.diag([1, 1, 1.5, 1])


def with_nan():
    values = releases.image(0).astype(np.float32)
    values[2, 2, 2] = np.nan
    return values


@pytest.fixture
def damaged(tmp_path):
    """A release in which case i has the i-th part of DAMAGES."""
    source = tmp_path / "release"
    for index, (damage, kind, _) in enumerate(DAMAGES.values()):
        name = f"BraTS2021_{index:05d}"
        for channel in ("t1", "t1ce", "t2", "flair"):
            releases.write(source / name / f"{name}_{channel}.nii.gz", releases.image(index))
        releases.write(source / name / f"{name}_seg.nii.gz", releases.labels((0, 1, 2, 4)))
        damage(source / name / f"{name}_{kind}.nii.gz")
    good = "BraTS2021_00100"
    for kind in ("t1", "t1ce", "t2", "flair"):
        releases.write(source / good / f"{good}_{kind}.nii.gz", releases.image(1))
    releases.write(source / good / f"{good}_seg.nii.gz", releases.labels((0, 1, 2, 4)))
    shutil.copytree(source / good, source / "again" / good)
    releases.write(source / "again" / good / f"{good}_t2.nii.gz", releases.image(2))
    return source


def test_all_problems_are_told_at_once_and_nothing_is_written(damaged, raw, capsys):
    convert("brats", damaged, code=1)
    told = capsys.readouterr().err
    for index, (_, kind, message) in enumerate(DAMAGES.values()):
        line = next(line for line in told.splitlines() if f"BraTS2021_{index:05d}:" in line)
        assert message in line
        assert "missing" in list(DAMAGES)[index] or f"_{kind}.nii.gz" in line
    assert "there is also" in told and "--skip-bad" in told
    assert untouched(raw)


def test_bad_cases_are_skipped_on_request_and_listed(damaged, raw, tmp_path):
    shutil.rmtree(damaged / "again")
    convert("brats", damaged, "--skip-bad")
    folder = raw / "Dataset137_BraTS"
    assert [path.name for path in (folder / "labelsTr").iterdir()] == ["BraTS2021_00100.nii.gz"]
    skipped = json.loads((folder / "conversion_report.json").read_text())["skipped"]
    assert {entry["case"] for entry in skipped} == {f"BraTS2021_{index:05d}" for index in range(len(DAMAGES))}


def interrupt_after(files, monkeypatch):
    """Ctrl-C in the middle of the file after so many."""
    copy, copied = shutil.copyfile, []

    def copy_some(source, target):
        if len(copied) == files:
            Path(target).write_bytes(b"half")
            raise KeyboardInterrupt
        copied.append(target)
        return copy(source, target)

    monkeypatch.setattr(conversion.shutil, "copyfile", copy_some)


@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_an_interrupted_conversion_resumes_to_the_same_folder(options, raw, tmp_path, monkeypatch, capsys):
    source = releases.write_brats(tmp_path / "release", "2021")
    convert("brats", source)
    whole = contents(raw / "Dataset137_BraTS")
    shutil.rmtree(raw / "Dataset137_BraTS")
    with monkeypatch.context() as interrupted:
        interrupt_after(7, interrupted)
        convert("brats", source, code=130)
    assert not (raw / "Dataset137_BraTS").exists()
    convert("brats", source, *options, "--channels", "t1", code=2)
    assert "this is another conversion" in capsys.readouterr().err
    convert("brats", source, *options)
    assert contents(raw / "Dataset137_BraTS") == whole
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]


CHANGES = {
    "channels": lambda source, tmp_path: ("--channels", "t1,t2"),
    "transfer": lambda source, tmp_path: ("--link",),
    "splits": lambda source, tmp_path: ("--split", str(own_split(tmp_path))),
    "source": lambda source, tmp_path: (
        releases.write(sorted(source.rglob("*_t1.nii.gz"))[0], releases.image(77)) and ()
    ),
}


def own_split(folder):
    path = folder / "own.json"
    path.write_text(json.dumps([{"train": ["BraTS2021_00000"], "val": ["BraTS2021_00001"]}]))
    return path


@pytest.mark.parametrize("changed", CHANGES)
def test_what_was_converted_otherwise_is_not_resumed(changed, raw, tmp_path, monkeypatch, capsys):
    source = releases.write_brats(tmp_path / "release", "2021")
    with monkeypatch.context() as interrupted:
        interrupt_after(1, interrupted)
        convert("brats", source, code=130)
    convert("brats", source, *CHANGES[changed](source, tmp_path), "--resume", code=2)
    message = " ".join(capsys.readouterr().err.split())
    assert f" {changed} is " in message.split("another conversion")[1]
    if changed == "transfer":
        assert 'transfer is "symlink", and was "copy"' in message


def test_a_disk_that_fills_up_ends_with_1_and_the_conversion_goes_on_later(raw, tmp_path, capsys):
    source = releases.write_brats(tmp_path / "release", "2021")
    large = sorted(source.rglob("*_flair.nii.gz"))[3]
    releases.write(large, np.random.default_rng(0).random(releases.SHAPE))
    size = large.stat().st_size
    assert size == max(path.stat().st_size for path in source.rglob("*.gz"))
    with largest_file(size - 1):
        convert("brats", source, code=1)
    message = " ".join(capsys.readouterr().err.split())
    assert "BraTS2021_00003_0003.nii.gz: cannot be written: File too large" in message and "bytes" in message
    assert not list(raw.rglob("BraTS2021_00003_0003*"))
    convert("brats", source, "--resume")
    assert (raw / "Dataset137_BraTS/imagesTr/BraTS2021_00003_0003.nii.gz").read_bytes() == large.read_bytes()
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]


def test_a_source_that_disappears_is_named_and_the_conversion_goes_on_later(raw, tmp_path, monkeypatch, capsys):
    """A network drive, for example."""
    source = releases.write_brats(tmp_path / "release", "2021")
    start = conversion._start_or_resume

    def meanwhile(destination, plan):
        start(destination, plan)
        (source / "BraTS2021_00003").rename(tmp_path / "away")

    with monkeypatch.context() as disappearing:
        disappearing.setattr(conversion, "_start_or_resume", meanwhile)
        convert("brats", source, code=1)
    message = " ".join(capsys.readouterr().err.split())
    assert (
        f"{source / 'BraTS2021_00003'}" in message
        and "No such file or directory" in message
        and "Error:" not in message
    )
    (tmp_path / "away").rename(source / "BraTS2021_00003")
    convert("brats", source)
    assert len(list((raw / "Dataset137_BraTS/labelsTr").iterdir())) == 6


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_half_file_and_resumes(raw, tmp_path):
    source = releases.write_brats(tmp_path / "release", "2021")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", source)
    command = [sys.executable, "-m", "nnunet_glims", "convert", "brats", archive, "-d", "137", "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    written = ".Dataset137_BraTS.unfinished/dataset/imagesTr/*.nii.gz"
    while not list(raw.glob(written)) and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (raw / "Dataset137_BraTS").exists() or process.returncode == 0
    for path in raw.glob(".Dataset137_BraTS.unfinished/dataset/*/*.nii.gz"):
        voxels(path)
    if process.returncode:
        convert("brats", archive, "--resume")
    interrupted = contents(raw / "Dataset137_BraTS")
    shutil.rmtree(raw / "Dataset137_BraTS")
    convert("brats", source)
    assert contents(raw / "Dataset137_BraTS") == interrupted
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]


def test_cases_of_a_patient_stay_in_one_fold(raw, tmp_path):
    convert("brats", releases.write_brats(tmp_path / "release", "2023"))
    folds = json.loads((raw / "Dataset137_BraTS/splits_final.json").read_text())
    assert len(folds) == 4  # as many as patients with a segmentation
    validated = [case for fold in folds for case in fold["val"]]
    assert sorted(validated) == releases.brats_names("2023")[:-1]
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == releases.brats_names("2023")[:-1]
        assert not {case[:15] for case in fold["train"]} & {case[:15] for case in fold["val"]}
    patients = json.loads((raw / "Dataset137_BraTS/conversion_report.json").read_text())["patients"]
    assert patients == {case: case[:15] for case in releases.brats_names("2023")}


def test_folds_are_those_of_nnunet_where_every_case_is_a_patient():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    call = f"generate_crossval_split(all_keys_sorted, seed={splits.SEED}, n_splits={splits.FOLDS})"
    assert call in inspect.getsource(nnUNetTrainer.do_split)
    cases = [f"case_{number:02d}" for number in range(23)]
    expected = generate_crossval_split(cases, seed=splits.SEED, n_splits=splits.FOLDS)
    assert len(expected) == 5
    assert splits.by_patient({case: case for case in reversed(cases)}) == [
        {part: sorted(map(str, fold[part])) for part in ("train", "val")} for fold in expected
    ]


def test_enough_patients_make_five_folds():
    patient_of = {f"{patient}-{time}": str(patient) for patient in range(23) for time in range(1 + patient % 3)}
    folds = splits.by_patient(patient_of)
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(patient_of)
    assert [len({patient_of[case] for case in fold["val"]}) for fold in folds] == [5, 5, 5, 4, 4]


@pytest.mark.parametrize("layout", ["RawData", "averaged", "flat"])
def test_btcv_has_thirteen_organs(layout, raw, tmp_path):
    convert("btcv", releases.write_btcv(tmp_path / "release", layout=layout))
    folder = raw / "Dataset137_BTCV"
    nnunet_accepts(folder)
    described = dataset_json(folder)
    assert (len(described["labels"]), described["labels"]["liver"], described["labels"]["left_adrenal_gland"]) == (
        14,
        6,
        13,
    )
    assert described["channel_names"] == {"0": "CT"}
    assert [path.name for path in (folder / "imagesTs").iterdir()] == ["img0061_0000.nii.gz"]
    assert not (folder / "splits_final.json").exists()
    source = next((tmp_path / "release").rglob("label0003.nii.gz"))
    assert (folder / "labelsTr/img0003.nii.gz").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("split", ["24-6", "nnunet", "own.json"])
def test_synapse8_has_its_own_split(split, raw, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text('[{"train": ["img0001"], "val": ["img0002"]}]')
    source = releases.write_btcv(tmp_path / "release", range(1, 4))
    convert("btcv", source, "--protocol", "synapse8", "--split", split, code=2)
    assert "the protocol synapse8 has a published split of its own" in capsys.readouterr().err
    assert untouched(raw)


def test_synapse8_keeps_eight_organs_and_the_published_split(raw, tmp_path):
    numbers = (*range(1, 11), *range(21, 41))
    convert("btcv", releases.write_btcv(tmp_path / "release", numbers), "--protocol", "synapse8")
    folder = raw / "Dataset137_BTCV"
    described = dataset_json(folder)
    assert list(described["labels"])[1:4] == ["aorta", "gallbladder", "left_kidney"]
    published = voxels(tmp_path / "release/RawData/Training/label/label0005.nii.gz")
    found = voxels(folder / "labelsTr/img0005.nii.gz")
    assert np.array_equal(found == described["labels"]["spleen"], published == 1)
    assert np.array_equal(found == described["labels"]["pancreas"], published == 11)
    assert np.array_equal(found == 0, np.isin(published, (0, 5, 9, 10, 12, 13)))
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert (len(fold["train"]), len(fold["val"])) == (18, 12)
    assert sorted(fold["train"] + fold["val"]) == [f"img{number:04d}" for number in numbers]


WRONG = [
    (("brats", "nowhere"), "there is no such folder or archive"),
    (("brats", "release/survival_info.csv"), "neither a folder nor a zip or tar"),
    (("btcv", "release"), "named like BTCV"),
    (("brats", "release", "--release", "2022"), "did you mean"),
    (("brats", "release", "--channels", "t1,t1c"), "did you mean 't1"),
    (("brats", "release", "--channels", "t1,t1"), "each may be there once"),
    (("brats", "release", "--name", "a/b"), "'a/b': use letters"),
    (("brats", "release", "--split", "none.json"), "none.json: there is no such file"),
    (("btcv", "release", "--protocol", "btcv"), "did you mean 'btcv13'"),
    (("brats", "release", "--workers", "0"), "--workers 0: at least one"),
    (("brats", "packed.zip", "--link"), "nothing to link to"),
    (("brats", "release", "--split", "release"), "this is a folder, not a file"),
    (("brats", "release", "--name", "a" * 300), "use at most 100 characters"),
    (("btcv", "release", "--partial"), "--partial: this is for a published split"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_wrong_use_is_refused_before_anything_is_written(words, message, raw, tmp_path, monkeypatch, capsys):
    releases.write_brats(tmp_path / "release", "2021")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "release")
    monkeypatch.chdir(tmp_path)
    convert(*words, code=2)
    assert message in capsys.readouterr().err
    assert untouched(raw)


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
@pytest.mark.parametrize("name", ["Dataset137_Other", "Dataset137_BraTS", "Dataset137"])
def test_a_number_is_used_once(name, variable, raw, tmp_path, monkeypatch, capsys):
    """nnU-Net looks for it in its three folders."""
    if variable != "nnUNet_raw":
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / variable / name).mkdir(parents=True)
    before = list(raw.iterdir())
    convert("brats", releases.write_brats(tmp_path / "release", "2021"), code=2)
    message = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path / variable}: number 137 is taken by {name}" in message
    assert list(raw.iterdir()) == before


def test_files_with_the_number_in_their_names_do_not_take_it(raw, tmp_path):
    (raw / "Dataset137.zip").touch()
    convert("brats", releases.write_brats(tmp_path / "release", "2021"))
    assert (raw / "Dataset137_BraTS/dataset.json").exists()


@pytest.mark.parametrize("ending", ["new", "tmp"])
def test_working_folders_of_a_killed_conversion_are_removed(ending, raw, tmp_path, monkeypatch):
    source = releases.write_brats(tmp_path / "release", "2021")
    with monkeypatch.context() as interrupted:
        interrupt_after(7, interrupted)
        convert("brats", source, code=130)
    written = next((raw / ".Dataset137_BraTS.unfinished/dataset/imagesTr").iterdir())
    for left in (written, raw / ".Dataset137_BraTS.unpacked", raw / ".Dataset137_BraTS.unfinished"):
        (left.parent / f".{left.name}.abc12345.{ending}").mkdir()
    convert("brats", source)
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]
    assert not list((raw / "Dataset137_BraTS").rglob(".*"))


def test_what_a_killed_conversion_left_after_its_last_step_is_removed(raw, tmp_path, capsys):
    source = releases.write_brats(tmp_path / "release", "2021")
    convert("brats", source)
    (raw / ".Dataset137_BraTS.unfinished").mkdir()
    (raw / ".Dataset137.lock").touch()
    convert("brats", source, code=2)
    assert "taken by Dataset137_BraTS" in capsys.readouterr().err
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]


def test_a_full_disk_is_noticed_before(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    convert("brats", releases.write_brats(tmp_path / "release", "2021"), code=1)
    assert "are needed" in capsys.readouterr().err


@pytest.mark.realdata
def test_the_real_cases_of_brats_2018(raw, real_cases):
    convert("brats", real_cases / "brats2018")
    folder = raw / "Dataset137_BraTS"
    nnunet_accepts(folder)
    assert dataset_json(folder)["numTraining"] == 6
    name = "Brats18_TCIA01_201_1"
    published = voxels(real_cases / f"brats2018/{name}/{name}_seg.nii.gz")
    assert np.array_equal(voxels(folder / f"labelsTr/{name}.nii.gz"), np.where(published == 4, 3, published))
