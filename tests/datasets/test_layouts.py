"""The folders, archives and names that people have, by the command: all cases are found, or the message says which are not."""

import io
import json
import os
import shutil
import tarfile
import unicodedata
import zipfile

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from tests.datasets import releases
from tests.datasets.test_conversion import convert, dataset_json, nnunet_accepts, untouched, voxels

KINDS = ("t1", "t1ce", "t2", "flair")
NAMES = [f"BraTS2021_{number:05d}" for number in range(2)]


def write_case(folder, name, seed=0, ending=".nii.gz"):
    for index, kind in enumerate(KINDS):
        releases.write(folder / f"{name}_{kind}{ending}", releases.image(10 * seed + index))
    releases.write(folder / f"{name}_seg{ending}", releases.labels((0, 1, 2, 4), seed))
    return folder


@pytest.fixture
def source(tmp_path):
    """Two cases of BraTS 2021, each in its folder."""
    for seed, name in enumerate(NAMES):
        write_case(tmp_path / "release" / name, name, seed)
    return tmp_path / "release"


def packed(path, source, top="release"):
    """A zip or tar of a folder; the ending of the path says which."""
    with tarfile.open(path, "w") if path.suffix == ".tar" else zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*.nii*")):
            add = archive.add if isinstance(archive, tarfile.TarFile) else archive.write
            add(file, f"{top}/{file.relative_to(source).as_posix()}")
    return path


def linked_folders(source, tmp_path):
    (tmp_path / "view").mkdir()
    for name in NAMES:
        (tmp_path / "view" / name).symlink_to(source / name, target_is_directory=True)
    (tmp_path / "view" / "circle").symlink_to(tmp_path / "view", target_is_directory=True)
    (source / "up").symlink_to(tmp_path, target_is_directory=True)
    return tmp_path / "view"


def capital_endings(source, tmp_path):
    for file in list(source.rglob("*.nii.gz")):
        file.rename(file.with_name(file.name.replace("_seg", "_SEG").replace(".nii.gz", ".NII.GZ")))
    return source


def with_other_files(source, tmp_path):
    """What operating systems, storage servers and people leave between the images."""
    image = next(source.rglob("*_t1.nii.gz"))
    for folder in ("__MACOSX", ".snapshot", "@eaDir", "#recycle", ".Trash-1000"):
        (source / folder).mkdir()
        (source / folder / image.name).write_bytes(b"old")
    (image.parent / f"._{image.name}").write_bytes(b"metadata")
    (image.parent / "Thumbs.db").write_bytes(b"pictures")
    (source / "name mapping (final).csv").write_text("a;b\n")
    os.mkfifo(source / f"{NAMES[0]}_pipe.nii.gz")
    return source


def twice(source, tmp_path):
    shutil.copytree(source / NAMES[0], source / "again" / NAMES[0])
    return source


def folders_like_files(source, tmp_path):
    """Kaggle packs each file into a folder of its name."""
    for file in list(source.rglob("*.nii.gz")):
        content = file.read_bytes()
        file.unlink()
        file.mkdir()
        (file / file.name).write_bytes(content)
    return source


def names_with_backslashes(source, tmp_path):
    """A zip of a Windows program, unpacked by a program that does not know of them."""
    (tmp_path / "flat").mkdir()
    for file in source.rglob("*.nii.gz"):
        shutil.copy(file, tmp_path / "flat" / f"BraTS\\{file.parent.name}\\{file.name}")
    return tmp_path / "flat"


def tar_in_zip(source, tmp_path):
    inner = packed(tmp_path / "BraTS2021.tar", source)
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "download/BraTS2021.tar")
    return tmp_path / "outer.zip"


def zip_as_the_last_file_of_a_tar(source, tmp_path):
    """The end of this tar looks like that of a zip."""
    inner = packed(tmp_path / "inner.zip", source / NAMES[1])
    with tarfile.open(tmp_path / "outer.tar", "w") as archive:
        archive.add(source / NAMES[0], NAMES[0])
        archive.add(inner, "inner.zip")
    return tmp_path / "outer.tar"


def program_before_a_zip(source, tmp_path):
    content = packed(tmp_path / "inner.zip", source).read_bytes()
    (tmp_path / "setup.exe").write_bytes(b"MZ" + bytes(100) + content)
    return tmp_path / "setup.exe"


LAYOUTS = (
    linked_folders, capital_endings, with_other_files, twice, folders_like_files, names_with_backslashes, tar_in_zip,
    zip_as_the_last_file_of_a_tar, program_before_a_zip,
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_cases(layout, source, raw, tmp_path, capsys):
    convert("brats", layout(source, tmp_path))
    folder = raw / "Dataset137_BraTS"
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == [f"{name}.nii.gz" for name in NAMES]
    for seed, name in enumerate(NAMES):
        assert np.array_equal(voxels(folder / f"imagesTr/{name}_0003.nii.gz"), releases.image(10 * seed + 3))
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 of 1251 cases")
    assert json.loads((folder / "conversion_report.json").read_text())["published_training_cases"] == 1251


def replaced(file, old, new):
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))
    return file


def encrypted(source, tmp_path):
    """The bits of every member that say so."""
    file = packed(tmp_path / "release.zip", source)
    replaced(file, b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")
    return replaced(file, b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")


def deflate64(source, tmp_path):
    file = packed(tmp_path / "release.zip", source)
    replaced(file, b"PK\x03\x04\x14\x00\x00\x00\x00\x00", b"PK\x03\x04\x14\x00\x00\x00\x09\x00")
    return replaced(file, b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x09\x00")


def two_of_one_name(source, tmp_path):
    file = packed(tmp_path / "release.zip", source)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"release/{NAMES[0]}/{NAMES[0]}_t1.nii.gz", b"other")
    return file


def cut_between_files(source, tmp_path):
    """A tar that ends in the header of a file, where Python's module sees nothing wrong."""
    file = packed(tmp_path / "release.tar", source)
    with tarfile.open(file) as archive:
        at = archive.getmembers()[7].offset
    file.write_bytes(file.read_bytes()[: at + 100])
    return file


def damaged_header(source, tmp_path):
    file = packed(tmp_path / "release.tar", source)
    with tarfile.open(file) as archive:
        at = archive.getmembers()[7].offset
    content = bytearray(file.read_bytes())
    content[at : at + 40] = bytes(range(40))
    file.write_bytes(content)
    return file


def bytes_missing(source, tmp_path):
    """Places in the file are before its begin then."""
    file = packed(tmp_path / "release.zip", source)
    content = file.read_bytes()
    file.write_bytes(content[:600] + content[610:])
    return file


def other_name_in_the_directory(source, tmp_path):
    """A zip has each name twice. Without this one, the case had no segmentation."""
    file = packed(tmp_path / "release.zip", source)
    content = file.read_bytes()
    at = content.rindex(b"_seg.nii.gz")
    file.write_bytes(content[:at] + b"_seg.txt.gz" + content[at + 11 :])
    return file


def archives_without_end(source, tmp_path):
    file = packed(tmp_path / "0.zip", source)
    for number in range(1, 6):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.write(file, file.name)
        file = tmp_path / f"{number}.zip"
    return file


def long_names(source, tmp_path):
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.writestr(f"{'a' * 300}_t1.nii.gz", b"")
    return tmp_path / "release.zip"


def file_and_folder(source, tmp_path):
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.writestr("a.nii", b"")
        archive.writestr("a.nii/b.nii", b"")
    return tmp_path / "release.zip"


def damaged_inside(source, tmp_path):
    inner = packed(tmp_path / "inner.tar", source)
    inner.write_bytes(inner.read_bytes()[:3000])
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.write(inner, "inner.tar")
    return tmp_path / "release.zip"


def larger_than_any_disk(source, tmp_path):
    """A sparse file in a tar: nothing in the archive, petabytes when it is unpacked."""
    info = tarfile.TarInfo("release.nii")
    info.size = 10
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**60)}
    info.pax_headers["GNU.sparse.name"] = "release.nii"
    blocks = b"0\n".ljust(512, b"\0")
    info.size = len(blocks)
    with tarfile.open(tmp_path / "release.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(blocks))
    return tmp_path / "release.tar"


REFUSED = [
    (encrypted, "is encrypted: unpack the archive with its password"),
    (deflate64, "is compressed with Deflate64, which Python cannot unpack"),
    (two_of_one_name, "is in the archive twice, with different content"),
    (cut_between_files, "damaged, cut off or cannot be unpacked"),
    (damaged_header, "damaged, cut off or cannot be unpacked"),
    (bytes_missing, "damaged, cut off or cannot be unpacked"),
    (other_name_in_the_directory, "damaged, cut off or cannot be unpacked"),
    (archives_without_end, "archives lie in archives more than 3 deep"),
    (long_names, "cannot be unpacked: File name too long"),
    (file_and_folder, "a.nii/b.nii cannot be unpacked"),
    (damaged_inside, "inner.tar in "),
    (larger_than_any_disk, "GiB are needed to unpack"),
]


@pytest.mark.parametrize(("archive", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_archives_that_cannot_be_unpacked_are_refused(archive, message, source, raw, tmp_path, capsys):
    convert("brats", archive(source, tmp_path), code=1)
    told = " ".join(capsys.readouterr().err.split())
    assert message in told and "Error:" not in told
    assert untouched(raw)


def empty(file):
    file.write_bytes(b"")


def dangling(file):
    file.unlink()
    file.symlink_to(file.with_name("nowhere"))


def other_copy(file):
    (file.parent / "copy").mkdir()
    releases.write(file.parent / "copy" / file.name, releases.labels((0, 4), 9))


def rgb(file):
    colours = np.zeros(releases.SHAPE, [(channel, "u1") for channel in "RGB"])
    nibabel.Nifti1Image(colours, releases.AFFINE).to_filename(file)


def interpolated(file):
    labels = releases.labels((0, 1, 2, 4)).astype(np.float64)
    labels[1, 1, :3] = 1.00002, 2.5, 3.9999999990686774
    releases.write(file, labels)


def endless(file):
    releases.write(file, releases.image(0), np.diag([1e30, 1, 1, 1]))


WRONG_FILES = [
    ("seg", empty, "the file is empty"),
    ("seg", dangling, "there is no such file"),
    ("t2", dangling, "there is no such file"),
    ("seg", other_copy, "there is also"),
    ("t1", rgb, "RGB"),
    ("t1", endless, "has spacing 1e+30×1×1 mm; 0.0001 to 1000 mm are possible"),
    ("seg", rgb, "RGB"),
    ("seg", interpolated, "has labels 1.00002, 2.5, 3.99999999907; only 0, 1, 2, 4 may be there (3 voxels"),
]


@pytest.mark.parametrize(("kind", "damage", "message"), WRONG_FILES)
def test_a_file_that_cannot_be_used_is_named_with_its_case(kind, damage, message, source, raw, capsys):
    file = source / NAMES[1] / f"{NAMES[1]}_{kind}.nii.gz"
    damage(file)
    convert("brats", source, code=1)
    told = capsys.readouterr().err
    line = next(line for line in told.splitlines() if line.startswith(f"  {NAMES[1]}: "))
    assert message in line and f"{NAMES[1]}_{kind}.nii.gz" in line and str(raw) not in line
    assert untouched(raw)
    convert("brats", source, "--skip-bad")
    told = capsys.readouterr().out
    assert f"skipped {NAMES[1]}: " in told and told.splitlines()[-1].startswith("1 of 1251 cases")
    assert [path.name for path in (raw / "Dataset137_BraTS/labelsTr").iterdir()] == [f"{NAMES[0]}.nii.gz"]


def write_named(folder, name):
    """A case named in another way than the releases."""
    write_case(folder, os.fsdecode(name))
    return folder


BAD_NAMES = [
    (b"caf\xe9", r"caf\xe9: the name has characters that cannot be shown"),
    (b"a\x1b[31mb", "the name has characters that cannot be shown"),
    (b"x" * 220, "the name has more than 200 bytes"),
]


@pytest.mark.parametrize(("name", "message"), BAD_NAMES)
def test_names_that_make_trouble_later_are_refused(name, message, raw, tmp_path, capsys):
    convert("brats", write_named(tmp_path / "release", name), "--release", "2021", code=1)
    assert message in capsys.readouterr().err
    assert untouched(raw)
    write_case(tmp_path / "release", "good")
    convert("brats", tmp_path / "release", "--release", "2021", "--skip-bad")
    assert "\\udc" not in (raw / "Dataset137_BraTS/conversion_report.json").read_text()  # half a character


def test_names_that_differ_in_capitals_only_are_refused(raw, tmp_path, capsys):
    for name in ("Case", "case"):
        write_case(tmp_path / "release", name)
    convert("brats", tmp_path / "release", "--release", "2021", code=1)
    assert capsys.readouterr().err.count("differs in capital letters only") == 2


def test_usual_odd_names_are_kept(raw, tmp_path):
    """Spaces, dots, brackets and accents."""
    names = ["with space", "with.dots.v2", "with[brackets]", "Müller"]
    for name in names:
        write_case(tmp_path / "release/a folder", name)
    convert("brats", tmp_path / "release", "--release", "2021")
    folder = raw / "Dataset137_BraTS"
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == sorted(f"{name}.nii.gz" for name in names)
    nnunet_accepts(folder)


def test_a_folder_whose_name_is_not_utf_8_is_named(source, raw, tmp_path, capsys):
    """SimpleITK ends the process where it is given such a path."""
    source.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    convert("brats", tmp_path / os.fsdecode(b"caf\xe9"), code=1)
    assert "its path is not UTF-8" in capsys.readouterr().err
    assert untouched(raw)


def test_an_archive_whose_name_is_not_utf_8_is_converted(source, raw, tmp_path, monkeypatch):
    archive = packed(tmp_path / "release.zip", source).rename(tmp_path / os.fsdecode(b"caf\xe9.zip"))
    replace = os.replace

    def interrupt(before, after):
        if "_0001.nii" in str(after):
            raise KeyboardInterrupt
        replace(before, after)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(os, "replace", interrupt)
        convert("brats", archive, code=130)
    assert [path.name for path in raw.iterdir()] == [".Dataset137_BraTS.unfinished"]
    convert("brats", archive)
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]


def test_names_in_latin_1_in_a_tar_are_read(source, raw, tmp_path):
    with tarfile.open(tmp_path / "release.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        archive.add(source, "café")
    convert("brats", tmp_path / "release.tar")
    sources = json.loads((raw / "Dataset137_BraTS/conversion_report.json").read_text())["source_files"]
    assert sources[NAMES[0]][0] == f"café/{NAMES[0]}/{NAMES[0]}_t1.nii.gz"


class Unflagged(zipfile.ZipInfo):
    """A name in UTF-8 without the flag that says so, as macOS packs it."""

    def _encodeFilenameFlags(self):
        return self.filename.encode(), self.flag_bits


@pytest.mark.parametrize("member", [zipfile.ZipInfo, Unflagged])
def test_accents_are_one_name_in_either_form_of_unicode(member, raw, tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    assert composed != decomposed
    write_case(write_case(tmp_path / "release", "Müller"), "Other", 1)
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        for file in (tmp_path / "release").iterdir():
            form = "NFD" if "_seg" in file.name else "NFC"
            archive.writestr(member(unicodedata.normalize(form, file.name)), file.read_bytes())
    own = [{"train": ["Other"], "val": [decomposed]}]
    (tmp_path / "own.json").write_text(json.dumps(own, ensure_ascii=False), encoding="utf-8-sig")
    convert("brats", tmp_path / "release.zip", "--release", "2021", "--split", str(tmp_path / "own.json"))
    (fold,) = json.loads((raw / "Dataset137_BraTS/splits_final.json").read_text())
    assert fold == {"train": ["Other"], "val": [composed]}
    assert (raw / f"Dataset137_BraTS/labelsTr/{composed}.nii.gz").exists()


def trailing_axis(file):
    image = nibabel.load(file)
    nibabel.Nifti1Image(np.asanyarray(image.dataobj)[..., None], image.affine, image.header).to_filename(file)
    assert nibabel.load(file).shape == (*releases.SHAPE, 1)


def test_an_axis_of_length_1_is_left_out_for_nnunet(source, raw):
    """In all files of a case, and in the segmentation of another one."""
    for name, kinds in zip(NAMES, ((*KINDS, "seg"), ("seg",)), strict=True):
        for kind in kinds:
            trailing_axis(source / name / f"{name}_{kind}.nii.gz")
    convert("brats", source)
    folder = raw / "Dataset137_BraTS"
    nnunet_accepts(folder)
    for path in folder.rglob("*.nii.gz"):
        assert nibabel.load(path).shape == releases.SHAPE == sitk.ReadImage(str(path)).GetSize()
    assert np.array_equal(voxels(folder / f"imagesTr/{NAMES[0]}_0002.nii.gz"), releases.image(2))
    found = nibabel.load(folder / f"imagesTr/{NAMES[0]}_0002.nii.gz").header
    assert all(
        np.array_equal(found[f"srow_{axis}"], releases.AFFINE[row].astype("f4")) for row, axis in enumerate("xyz")
    )


def test_labels_are_those_that_were_checked_also_with_a_scaling(source, raw):
    """With this scaling the numbers are 1, 2 and 4 in single precision, and slightly others in double precision."""
    labels = releases.labels((0, 1, 2, 4))
    file = source / NAMES[0] / f"{NAMES[0]}_seg.nii.gz"
    stored = (labels * 3).astype(np.int16)
    image = nibabel.Nifti1Image(stored, releases.AFFINE)
    image.header.set_slope_inter(1 / 3, 0)
    image.to_filename(file)
    read = np.asanyarray(nibabel.load(file).dataobj)
    assert not np.array_equal(read, labels) and np.array_equal(read.astype(np.float32), labels)
    convert("brats", source)
    assert np.array_equal(
        voxels(raw / f"Dataset137_BraTS/labelsTr/{NAMES[0]}.nii.gz"), np.where(labels == 4, 3, labels)
    )


@pytest.mark.parametrize("code", [1, 38, 95])
def test_without_links_files_are_copied(code, source, raw, monkeypatch, capsys):
    """exFAT and many network drives: EPERM, ENOSYS, ENOTSUP."""

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    for name in ("symlink", "link"):
        monkeypatch.setattr(os, name, refuse)
    convert("brats", source, "--link")
    assert "this disk has no symbolic links: files are copied" in capsys.readouterr().out
    files = list((raw / "Dataset137_BraTS").rglob("*.nii.gz"))
    assert len(files) == 10 and not any(file.is_symlink() for file in files)


def test_a_stray_segmentation_that_is_there_twice_is_taken_once(raw, tmp_path, capsys):
    source = releases.write_brats(tmp_path / "release", "2020")
    stray = next(source.rglob("W39*"))
    proper = stray.with_name(f"{stray.parent.name}_seg.nii.gz")
    shutil.copy(stray, proper)
    convert("brats", source)
    shutil.rmtree(raw / "Dataset137_BraTS")
    releases.write(proper, releases.labels((0, 4), 5))
    convert("brats", source, code=1)
    assert f"  {stray.parent.name}: " in capsys.readouterr().err


OLD_NAMES = [("Brats17_TCIA_1", "2017", 285), ("Brats18_TCIA_1", "2018", 285), ("BraTS19_CBICA_AAB_1", "2019", 335)]


@pytest.mark.parametrize(("name", "release", "count"), OLD_NAMES)
def test_old_releases_are_known_by_their_names(name, release, count, raw, tmp_path, capsys):
    convert("brats", write_case(tmp_path / "release/HGG" / name, name))
    assert dataset_json(raw / "Dataset137_BraTS")["release"] == f"BraTS {release}"
    assert f"1 of {count} cases" in capsys.readouterr().out.splitlines()[-1]


def test_capitals_and_fewer_digits_in_btcv(raw, tmp_path):
    releases.write(tmp_path / "release/IMG0001.nii.gz", releases.image(1))
    releases.write(tmp_path / "release/Label0001.nii.gz", releases.labels((0, 1)))
    releases.write(tmp_path / "release/img2.nii.gz", releases.image(2))
    releases.write(tmp_path / "release/label2.nii.gz", releases.labels((0, 1)))
    convert("btcv", tmp_path / "release")
    assert sorted(path.name for path in (raw / "Dataset137_BTCV/labelsTr").iterdir()) == [
        "img0001.nii.gz",
        "img0002.nii.gz",
    ]


NOTHING = {
    "has no NIfTI files (": lambda folder: (folder / "readme.txt").write_text("text"),
    "but archives (BraTS.tar)": lambda folder: (folder / "BraTS.tar").write_bytes(b"tar"),
    "is named like BraTS": lambda folder: releases.write(folder / "other.nii.gz", releases.image(1)),
}


@pytest.mark.parametrize("message", NOTHING)
def test_folders_without_cases_are_refused(message, raw, tmp_path, capsys):
    (tmp_path / "release").mkdir()
    NOTHING[message](tmp_path / "release")
    convert("brats", tmp_path / "release", code=2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert untouched(raw)


@pytest.mark.parametrize("name", ["release.7z", "release.rar", "release.zip.001", "release.tar.zst"])
def test_other_archives_are_to_be_unpacked_first(name, raw, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"something")
    convert("brats", tmp_path / name, code=2)
    assert "unpack it first" in capsys.readouterr().err


def test_files_and_cases_that_are_not_trained_on_are_named(source, raw, capsys):
    label = source / NAMES[1] / f"{NAMES[1]}_seg.nii.gz"
    label.rename(label.with_name(f"{NAMES[1]}_seg (1).nii.gz"))
    convert("brats", source)
    told = capsys.readouterr().out
    assert f"not used, because their names are not those of a case: {NAMES[1]}/{NAMES[1]}_seg (1).nii.gz" in told
    assert f"test cases, because they have no segmentation: {NAMES[1]}" in told
