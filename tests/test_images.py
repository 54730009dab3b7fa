"""Images and label maps come back from the disk as they were written, or there is an error and no file."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_glims.errors import ProcessingError
from nnunet_glims.geometry import Geometry
from nnunet_glims.images import read_image, read_label_map, read_nifti, write_image
from tests.test_files import largest_file, names

GEOMETRY = Geometry((4, 5, 6), (1.0, 0.5, 2.25), (-3.0, 7.0, 11.5), (0.0, 1, 0, -1.0, 0, 0, 0, 0, 1))


def voxels(dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 4, (6, 5, 4)).astype(dtype)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_written_comes_back(ending, dtype, tmp_path):
    path = tmp_path / f"image{ending}"
    written = voxels(dtype)
    write_image(written, GEOMETRY, path)
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), written)
    assert Geometry.of(image).difference(GEOMETRY) is None
    assert names(tmp_path) == [path.name]


def test_values_that_are_not_finite_can_be_written(tmp_path):
    maps = voxels(np.float32)
    maps[0, 0, 0] = np.nan
    write_image(maps, GEOMETRY, tmp_path / "map.nii.gz")
    assert np.array_equal(read_nifti(tmp_path / "map.nii.gz")[0].T, maps, equal_nan=True)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_an_image_that_the_disk_does_not_take_is_an_error(ending, tmp_path):
    path = tmp_path / f"image{ending}"
    path.write_bytes(b"old")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 64)).astype(np.uint8)
    with largest_file(100_000), pytest.raises(ProcessingError, match="cannot be written") as caught:
        write_image(noise, Geometry((64, 64, 64), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1)), path)
    assert str(path) in str(caught.value) and "free" in str(caught.value)
    assert path.read_bytes() == b"old" and names(tmp_path) == [path.name]


def test_axes_and_geometry_of_a_nifti(tmp_path):
    write_image(voxels(), GEOMETRY, tmp_path / "image.nii.gz")
    found, geometry = read_nifti(tmp_path / "image.nii.gz")
    assert np.array_equal(found, voxels().T)
    assert geometry.difference(GEOMETRY) is None
    assert np.array_equal(read_label_map(tmp_path / "image.nii.gz").labels, voxels())


DAMAGES = {
    "cut off": lambda content: content[:-9],
    "another byte": lambda content: content[:-6] + bytes([content[-6] ^ 1]) + content[-5:],
    "no NIfTI": lambda _: gzip.compress(b"<html>404</html>"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(damage, tmp_path):
    path = tmp_path / "image.nii.gz"
    write_image(voxels(), GEOMETRY, path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ProcessingError) as caught:
        read_nifti(path)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")
    with pytest.raises(ProcessingError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")
