"""Images of every format, written by other libraries and then damaged: they are refused, or are what they were."""

import gzip
import os
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_glims.errors import ProcessingError, UsageError, UserError
from nnunet_glims.image_formats import nifti
from nnunet_glims.images import read_image, read_label_map, read_nifti, write_image

SPACING, ORIGIN = (1.0, 0.5, 2.25), (-3.0, 7.0, 11.5)
SUMMED = {
    "gzipped NIfTI": "image.nii.gz",
    "compressed MetaImage": "image.mha",
    "gzipped NRRD": "image.nrrd",
    "deflated TIFF": "image.tif",
}
"""Formats with a checksum over their voxels."""
PLAIN = {"NIfTI": "image.nii", "MetaImage": "image.mha", "NRRD": "image.nrrd", "GIPL": "image.gipl"}


def numbers(dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 4, (7, 6, 5)).astype(dtype)


def written(folder, kind, dtype=np.uint8):
    """A file of this kind that SimpleITK, or tifffile, wrote."""
    path = folder / (SUMMED | PLAIN)[kind]
    if path.suffix == ".tif":
        tifffile.imwrite(path, numbers(dtype), compression="zlib", photometric="minisblack")
        return path
    image = sitk.GetImageFromArray(numbers(dtype))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    sitk.WriteImage(image, str(path), kind in SUMMED)
    return path


def refusal(path):
    """The message with which a file is refused; None where it is read."""
    try:
        read_image(path)
    except UserError as error:
        message = str(error)
    else:
        return None
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("kind", [*SUMMED, *PLAIN])
def test_whole_files_are_read(kind, dtype, tmp_path):
    found = read_image(written(tmp_path, kind, dtype))
    assert np.array_equal(found.voxels, numbers(dtype)) and found.voxels.dtype == dtype
    spacing = (1, 1, 1) if "TIFF" in kind else SPACING
    assert found.geometry.spacing == pytest.approx(spacing) and found.spacing == pytest.approx(spacing[::-1])


@pytest.mark.parametrize("kind", [*SUMMED, *PLAIN])
def test_a_file_cut_off_at_any_byte_is_refused(kind, tmp_path):
    path = written(tmp_path, kind)
    content = path.read_bytes()
    for length in {*range(0, len(content), 31), *range(len(content) - 12, len(content))}:
        path.write_bytes(content[:length])
        assert refusal(path), length


@pytest.mark.parametrize(("kind", "large"), [*((kind, False) for kind in SUMMED), ("gzipped NIfTI", True)])
def test_damaged_voxels_with_a_checksum_are_refused(kind, large, tmp_path, monkeypatch):
    if large:  # these are decoded by SimpleITK
        monkeypatch.setattr(nifti, "_SMALL", 0)
    path = written(tmp_path, kind)
    content = path.read_bytes()
    refused = 0
    step = 23 if "TIFF" in kind else 5
    damaged = [
        (at, content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]) for at in range(0, len(content), step)
    ]
    damaged += [(at, content[:at] + bytes(len(content) - at)) for at in range(0, len(content) - 4, 50)]
    for at, changed in damaged:
        path.write_bytes(changed)
        if refusal(path):
            refused += 1
        else:  # a byte of the header that says nothing about the voxels
            assert np.array_equal(read_image(path).voxels, numbers()), at
    assert refused > len(damaged) / 2


@pytest.mark.parametrize("kind", PLAIN)
def test_damaged_headers_are_refused_or_say_nothing_about_voxels(kind, tmp_path):
    path = written(tmp_path, kind)
    content = path.read_bytes()
    header = len(content) - numbers().size
    unprotected = range(112, 120) if kind == "NIfTI" else ()  # slope and intercept, any of which may be meant
    for at in set(range(0, header, 5)) - set(unprotected):
        path.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        if not refusal(path):
            assert np.array_equal(read_image(path).voxels, numbers()), at


@pytest.mark.parametrize("kind", [kind for kind in [*SUMMED, *PLAIN] if "TIFF" not in kind])
def test_more_bytes_than_the_header_states_are_refused(kind, tmp_path):
    path = written(tmp_path, kind)
    path.write_bytes(path.read_bytes() + b"more")
    assert refusal(path)


ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".tif", ".tiff")


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_no_image_is_named(ending, tmp_path):
    path = tmp_path / f"case{ending}"
    assert "there is no such file" in refusal(path)
    path.write_bytes(b"")
    assert "the file is empty" in refusal(path)
    for content in (b"<html>404</html>\n" * 40, gzip.compress(b"<html>404</html>\n"), bytes(1000)):
        path.write_bytes(content)
        assert "cannot be read" in refusal(path)
    path.unlink()
    path.mkdir()
    assert "this is a folder" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pipe_is_not_waited_for(ending, tmp_path):
    os.mkfifo(tmp_path / f"case{ending}")
    assert "no regular file" in refusal(tmp_path / f"case{ending}")


def test_sizes_beyond_all_memory_are_refused(tmp_path):
    head = bytearray(written(tmp_path, "NIfTI").read_bytes()[:352])
    struct.pack_into("<8h", head, 40, 7, *7 * [32767])
    (tmp_path / "case.nii").write_bytes(head)
    (tmp_path / "case.nii.gz").write_bytes(gzip.compress(head))
    mha = written(tmp_path, "compressed MetaImage").read_bytes()
    (tmp_path / "case.mha").write_bytes(mha.replace(b"DimSize = 5 6 7", b"DimSize = 5 6 70000000000000000000"))
    for name in ("case.nii", "case.nii.gz", "case.mha"):
        assert "cannot be read: " in refusal(tmp_path / name)
    tiff = bytearray(written(tmp_path, "deflated TIFF").read_bytes())
    with tifffile.TiffFile(tmp_path / "image.tif") as opened:
        entries = [page.tags[name].valueoffset for page in opened.pages for name in ("ImageWidth", "ImageLength")]
    for at in entries:
        tiff[at : at + 4] = struct.pack("<I", 60000)
    (tmp_path / "case.tif").write_bytes(tiff)
    assert "cannot be read: " in refusal(tmp_path / "case.tif")


def test_other_endings_are_refused_with_those_that_are_read(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(tmp_path / "case.vtk"))
    assert ".nii.gz" in refusal(tmp_path / "case.vtk")


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (5, 6, 7, 1, 1)])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_axes_of_one_voxel_after_the_third_are_left_out(shape, ending, tmp_path):
    path = tmp_path / f"case{ending}"
    if ".nii" in ending:
        nibabel.save(nibabel.Nifti1Image(numbers().T.reshape(shape), np.diag([*SPACING, 1])), path)
        assert read_nifti(path)[0].shape == (5, 6, 7)
    else:
        image = sitk.GetImageFromArray(numbers()[None], isVector=False)
        image.SetSpacing((*SPACING, 1.0))
        sitk.WriteImage(image, str(path))
    found = read_label_map(path)
    assert np.array_equal(found.labels, numbers())
    assert found.geometry.size == (5, 6, 7) and found.geometry.spacing == pytest.approx(SPACING)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2)])
def test_other_numbers_of_axes_are_named(shape, tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), tmp_path / "case.nii.gz")
    with pytest.raises(UsageError, match=f"has {len(shape)} axes"):
        read_image(tmp_path / "case.nii.gz")


def test_colours_and_vectors_are_no_images(tmp_path):
    colours = np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "case.nii.gz")
    assert "RGB colours" in refusal(tmp_path / "case.nii.gz")
    for ending in (".mha", ".nrrd"):
        image = sitk.GetImageFromArray(np.zeros((7, 6, 5, 3), np.uint8), isVector=True)
        sitk.WriteImage(image, str(tmp_path / f"case{ending}"))
        assert refusal(tmp_path / f"case{ending}")


def test_sheared_axes_are_refused_with_what_reads_them(tmp_path):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(numbers().T, affine), tmp_path / "case.nii.gz")
    assert "sheared" in refusal(tmp_path / "case.nii.gz") and "NibabelIO" in refusal(tmp_path / "case.nii.gz")
    image = sitk.GetImageFromArray(numbers())
    image.SetDirection((1, 0.3, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "case.mha"))
    assert "sheared" in refusal(tmp_path / "case.mha")


@pytest.mark.parametrize("kind", [kind for kind in [*SUMMED, *PLAIN] if "TIFF" not in kind])
def test_values_that_are_not_finite_are_counted(kind, tmp_path):
    path = tmp_path / (SUMMED | PLAIN)[kind]
    voxels = numbers(np.float32)
    voxels[0, 0, :3] = np.nan
    voxels[1, 0, :2] = np.inf, -np.inf
    if ".nii" in path.name:
        nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), kind in SUMMED)
    with pytest.raises(ProcessingError, match="3 NaN and 2 infinite of 210 values"):
        read_image(path)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, 3), (2, -1)])
def test_numbers_of_a_nifti_are_nibabels(order, scaling, large, tmp_path, monkeypatch):
    if large:
        monkeypatch.setattr(nifti, "_SMALL", 0)
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(f"{order}i2"))
    header.set_data_shape((5, 6, 7))
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = scaling
    content = header.binaryblock + bytes(4) + numbers(f"{order}i2").tobytes()
    for name, stored in (
        ("case.nii", content),
        ("case.nii.gz", gzip.compress(content)),
        ("two.nii.gz", gzip.compress(content[:500]) + gzip.compress(content[500:]) + bytes(512)),
    ):
        (tmp_path / name).write_bytes(stored)
        expected = np.asanyarray(nibabel.load(tmp_path / name).dataobj)
        assert np.array_equal(read_nifti(tmp_path / name)[0], expected)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_second_version_of_nifti_is_named(ending, tmp_path):
    nibabel.save(nibabel.Nifti2Image(numbers().T, np.diag([*SPACING, 1])), tmp_path / f"case{ending}")
    assert "NIfTI 2" in refusal(tmp_path / f"case{ending}")


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path):
    path = written(tmp_path, "NIfTI")
    (tmp_path / "case.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(2**24)))
    assert "more than the 562 bytes" in refusal(tmp_path / "case.nii.gz")
    head = bytearray(path.read_bytes()[:352])
    struct.pack_into("<4h", head, 40, 3, 32767, 32767, 32767)
    path.write_bytes(head)
    assert "cut off" in refusal(path)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_voxels_beside_a_header_must_be_whole_and_beside_it(ending, tmp_path):
    path = tmp_path / f"case{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(path), False)
    assert np.array_equal(read_image(path).voxels, numbers())
    (beside,) = {*tmp_path.iterdir()} - {path}
    content = beside.read_bytes()
    for changed in (content[:-1], content + b"0", b""):
        beside.write_bytes(changed)
        assert refusal(path)
    beside.unlink()
    assert beside.name in refusal(path)
    (tmp_path.parent / beside.name).write_bytes(content)
    path.write_text(path.read_text().replace(beside.name, f"../{beside.name}"))
    assert "not in one file beside it" in refusal(path)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_header_and_voxels_are_written_to_one_file(ending, tmp_path):
    source = read_image(written(tmp_path, "gzipped NRRD"))
    (tmp_path / "out").mkdir()
    write_image(source.voxels, source.geometry, tmp_path / f"out/case{ending}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"case{ending}"]
    image = sitk.ReadImage(str(tmp_path / f"out/case{ending}"))
    assert np.array_equal(sitk.GetArrayFromImage(image), numbers())
    assert image.GetSpacing() == pytest.approx(SPACING) and image.GetOrigin() == pytest.approx(ORIGIN)


def test_the_spacing_of_a_tiff_is_in_a_file_beside_it(tmp_path):
    path = written(tmp_path, "deflated TIFF").rename(tmp_path / "case_0000.tif")
    (tmp_path / "case.json").write_text('{"spacing": [2.25, 0.5, 1.0]}')
    found = read_image(path)
    assert found.spacing == (2.25, 0.5, 1.0)
    (tmp_path / "out").mkdir()
    write_image(found.voxels, found.geometry, tmp_path / "out/case.tif")
    assert (tmp_path / "out/case.json").is_file()
    assert np.array_equal(tifffile.imread(tmp_path / "out/case.tif"), numbers())
    assert read_image(tmp_path / "out/case.tif").spacing == (2.25, 0.5, 1.0)
    for content in ("{}", "[1, 2, 3]", '{"spacing": [1, 0, 1]}', '{"spacing": [1, 1]}', "no"):
        (tmp_path / "case.json").write_text(content)
        assert "case.json" in refusal(path)


@pytest.mark.parametrize(
    ("values", "named"),
    [((1.00002, 2.5), "2 voxels hold 1.00002, 2.5, "), ((-1, 300), "2 voxels hold -1, 300, ")],
)
def test_values_that_are_no_labels_are_named(values, named, tmp_path):
    voxels = numbers(np.float32)
    voxels[0, 0, :2] = values
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "case.mha"))
    with pytest.raises(UsageError, match=named):
        read_label_map(tmp_path / "case.mha")
