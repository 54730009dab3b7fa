"""Archives as sources: what is in them stays inside, and one archive is never taken for another."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_glims.datasets import archive, conversion
from nnunet_glims.datasets.archive import opened
from nnunet_glims.datasets.unpacking import inside_name, is_archive
from nnunet_glims.errors import ProcessingError
from tests.datasets import releases
from tests.datasets.test_conversion import convert, untouched, voxels


def zip_of(path, members):
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in members.items():
            packed.writestr(zipfile.ZipInfo(name), content)
    return path


def tar_of(path, members):
    with tarfile.open(path, "w") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def place(tmp_path):
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw/unpacked"


def names_in(found):
    return [file.relative_to(found.folder).as_posix() for file in found.files]


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_names_of_windows_become_folders(pack, tmp_path, place):
    packed = pack(tmp_path / "release", {"BraTS\\case\\case_t1.nii.gz": b"1", ".\\other\\x.nii": b"2", "a/b.nii": b"3"})
    with opened(packed, place) as found:
        assert names_in(found) == ["BraTS/case/case_t1.nii.gz", "a/b.nii", "other/x.nii"]
        assert [file.read_bytes() for file in found.files] == [b"1", b"3", b"2"]
    assert list(place.parent.iterdir()) == []


OUTSIDE = (
    "../a.nii",
    "b/../../a.nii",
    "..\\a.nii",
    "/tmp/a.nii",
    "\\a.nii",
    "C:\\a.nii",
    "c:a.nii",
    "\\\\host\\x\\a.nii",
)


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused(pack, name, tmp_path, place):
    before = sorted(tmp_path.iterdir())
    packed = pack(tmp_path / "release", {"good.nii": b"", name: b"evil"})
    with pytest.raises(ProcessingError, match="would lie outside of the folder"), opened(packed, place):
        pass
    assert list(place.parent.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == sorted([*before, packed])


def linked_tar(path, links, members):
    with tarfile.open(path, "w") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        for name, (kind, to) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, to
            packed.addfile(info)
    return path


def linked_zip(path, links, members):
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
        for name, (_, to) in links.items():
            link = zipfile.ZipInfo(name)
            link.external_attr = 0o120777 << 16
            packed.writestr(link, to)
    return path


@pytest.mark.parametrize("pack", [linked_zip, linked_tar])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_to_other_files_of_the_archive_become_copies_of_them(pack, kind, tmp_path, place):
    to = "store/x.nii" if kind == tarfile.LNKTYPE and pack is linked_tar else "../store/x.nii"
    packed = pack(tmp_path / "release", {"view/y.nii": (kind, to)}, {"store/x.nii": b"voxels"})
    with opened(packed, place) as found:
        assert names_in(found) == ["store/x.nii", "view/y.nii"]
        assert [(file.read_bytes(), file.is_symlink(), file.stat().st_nlink) for file in found.files] == [
            (b"voxels", False, 1)
        ] * 2


@pytest.mark.parametrize("pack", [linked_zip, linked_tar])
def test_links_to_links_are_followed_but_not_in_circles(pack, tmp_path, place):
    links = {"view/y.nii": (tarfile.SYMTYPE, "../store/link.nii"), "store/link.nii": (tarfile.SYMTYPE, "x.nii")}
    with opened(pack(tmp_path / "release", links, {"store/x.nii": b"voxels"}), place) as found:
        assert [file.read_bytes() for file in found.files] == [b"voxels"] * 3
    circle = {"a.nii": (tarfile.SYMTYPE, "b.nii"), "b.nii": (tarfile.SYMTYPE, "a.nii")}
    with (
        pytest.raises(ProcessingError, match=r"a.nii is a link to .* not in the archive"),
        opened(pack(tmp_path / "circle", circle, {"x.nii": b""}), place),
    ):
        pass


@pytest.mark.parametrize("pack", [linked_zip, linked_tar])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("to", ["secret", "../../secret", "link.nii"])
def test_links_out_of_the_archive_and_in_circles_are_refused(pack, kind, to, tmp_path, place):
    (tmp_path / "secret").write_text("secret")
    packed = pack(tmp_path / "release", {"link.nii": (kind, str(tmp_path / to))}, {"a.nii": b""})
    with pytest.raises(ProcessingError, match="link.nii is a link to .* not in the archive"), opened(packed, place):
        pass


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(alphabet="ab./\\:C ", max_size=12))
def test_no_name_leads_outside(name):
    inside = inside_name(name)
    if inside is None:
        assert ".." in name or name[:1] in ("/", "\\") or name[1:2] == ":"
    else:
        path = PurePosixPath(inside)
        assert not path.is_absolute() and ".." not in path.parts and "\\" not in inside


@pytest.fixture
def packed(tmp_path):
    """A release packed by each way of packing."""
    source = releases.write_brats(tmp_path / "release", "2018", ending=".nii")
    return {
        kind: Path(shutil.make_archive(str(tmp_path / kind), kind, source)) for kind in ("zip", "tar", "gztar", "xztar")
    }


DAMAGES = {
    "cut off": lambda content: content[: len(content) // 2],
    "other bytes": lambda content: content[: len(content) // 4] + bytes(60) + content[len(content) // 4 + 60 :],
    "text": lambda _: b"<html>404</html>",
}
KINDS = [(kind, damage) for kind in ("zip", "tar", "gztar", "xztar") for damage in DAMAGES]
KINDS.remove(
    ("tar", "other bytes")
)  # a plain tar has no sum over its content; images are read to their last byte later


@pytest.mark.parametrize(("kind", "damage"), KINDS)
def test_damaged_archives_are_told_and_leave_nothing(kind, damage, packed, place):
    packed[kind].write_bytes(DAMAGES[damage](packed[kind].read_bytes()))
    assert is_archive(packed[kind])
    with pytest.raises(ProcessingError, match="damaged, cut off or cannot be unpacked"), opened(packed[kind], place):
        pass
    assert list(place.parent.iterdir()) == []


def test_the_command_ends_with_1_for_a_damaged_archive(packed, raw, capsys):
    packed["zip"].write_bytes(packed["zip"].read_bytes()[:-500])
    convert("brats", packed["zip"], code=1)
    message = capsys.readouterr().err
    assert f"{packed['zip']}: this archive is damaged" in message and "Traceback" not in message
    assert untouched(raw)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_a_text_with_the_name_of_an_archive_is_told_in_one_line(name, raw, tmp_path, capsys):
    (tmp_path / name).write_text("no archive\n" * 99)
    convert("brats", tmp_path / name, code=1)
    message = capsys.readouterr().err.strip()
    assert "it does not begin as a zip or tar archive does" in " ".join(message.split()) and "method" not in message


def test_a_fingerprint_tells_sources_apart(packed, tmp_path, place):
    def fingerprint(source):
        with opened(source, place) as found:
            return json.loads(json.dumps(found.fingerprint))

    folder = tmp_path / "release"
    sources = [folder, *packed.values()]
    before = [fingerprint(source) for source in sources]
    assert before == [fingerprint(source) for source in sources]
    assert len({json.dumps(found) for found in before}) == len(sources)
    image = sorted(folder.rglob("*.nii"))[0]
    releases.write(image, releases.image(99))
    assert fingerprint(folder) != before[0]
    again = Path(shutil.make_archive(str(tmp_path / "zip"), "zip", folder))
    assert again == packed["zip"] and fingerprint(again) != before[1]


def two_archives(tmp_path):
    """The same names, other voxels."""
    folders = [releases.write_brats(tmp_path / name, "2021") for name in "AB"]
    for image in folders[1].rglob("*_t1.nii.gz"):
        releases.write(image, releases.image(1000))
    return [Path(shutil.make_archive(str(folder), "zip", folder)) for folder in folders]


@pytest.mark.parametrize("moment", ["unpacking", "reading", "checking", "writing"])
def test_after_ctrl_c_another_archive_gives_its_own_cases(moment, raw, tmp_path, monkeypatch, capsys):
    first, second = two_archives(tmp_path)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        place = {
            "unpacking": (zipfile.ZipFile, "open"),
            "reading": (archive, "_below"),
            "checking": (conversion, "check_case"),
            "writing": (conversion.os, "replace"),
        }[moment]
        if moment == "writing":
            replace = conversion.os.replace
            interrupted.setattr(*place, lambda a, b: interrupt() if "_0001.nii" in str(b) else replace(a, b))
        else:
            interrupted.setattr(*place, interrupt)
        convert("brats", first, code=130)
    left = [path.name for path in raw.iterdir()]
    assert left == ([".Dataset137_BraTS.unfinished"] if moment == "writing" else [])
    if moment == "writing":
        for options in ((), ("--resume",)):
            convert("brats", second, *options, code=2)
            message = " ".join(capsys.readouterr().err.split())
            assert str(first) in message and str(second) in message
        shutil.rmtree(raw / left[0])
    convert("brats", second)
    assert np.array_equal(voxels(raw / "Dataset137_BraTS/imagesTr/BraTS2021_00000_0000.nii.gz"), releases.image(1000))
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]


def test_an_interrupted_conversion_of_an_archive_resumes(raw, tmp_path, monkeypatch):
    first, _ = two_archives(tmp_path)
    convert("brats", first)
    whole = {path.name: path.read_bytes() for path in (raw / "Dataset137_BraTS").rglob("*.*") if path.is_file()}
    shutil.rmtree(raw / "Dataset137_BraTS")
    replace, moved = conversion.os.replace, []

    def interrupt(before, after):
        if len(moved) == 9:
            raise KeyboardInterrupt
        if "imagesTr" in str(after):
            moved.append(after)
        replace(before, after)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(conversion.os, "replace", interrupt)
        convert("brats", first, code=130)
    convert("brats", first, "--resume")
    again = {path.name: path.read_bytes() for path in (raw / "Dataset137_BraTS").rglob("*.*") if path.is_file()}
    assert again == whole
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]


def test_two_conversions_at_once_do_not_mix(raw, tmp_path, monkeypatch, capsys):
    """Others begin while the first one writes: of another archive, and of the same one under another name."""
    first, second = two_archives(tmp_path)
    start, codes = conversion._start_or_resume, []

    def meanwhile(destination, plan):
        start(destination, plan)
        if not codes:
            codes.append(None)
            convert("brats", second, code=1)
            convert("brats", first, "--name", "Other", code=1)

    monkeypatch.setattr(conversion, "_start_or_resume", meanwhile)
    convert("brats", first)
    message = " ".join(capsys.readouterr().err.split())
    assert codes and message.count(f"process {os.getpid()} on ") == 2 and "since 2" in message
    assert "choose another number" in message
    assert np.array_equal(voxels(raw / "Dataset137_BraTS/imagesTr/BraTS2021_00000_0000.nii.gz"), releases.image(0))
    assert [path.name for path in raw.iterdir()] == ["Dataset137_BraTS"]
