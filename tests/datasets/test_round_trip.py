"""Whatever labels, types and geometry a release has, `convert` and then `submit` give them back to the last bit."""

import gzip
import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_glims.datasets import archive, brats, btcv, submission
from nnunet_glims.datasets.conversion import Destination, convert

GEOMETRY = (
    "dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


@st.composite
def affines(draw):
    """Rotated or mirrored axes, voxels of any size, an origin anywhere."""
    entries = st.floats(-1, 1, width=32)
    matrix = np.array([draw(entries) for _ in range(9)]).reshape(3, 3) + 2 * np.eye(3)[draw(st.permutations(range(3)))]
    spacing = [draw(st.floats(0.25, 5, width=32)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(matrix)[0] * spacing
    affine[:3, 3] = [draw(st.floats(-300, 300, width=32)) for _ in range(3)]
    return affine


KINDS = st.sampled_from([np.uint8, np.int16, np.uint16, np.float32, np.float64])
SIZES = st.tuples(*[st.integers(2, 4)] * 3)


def write(path, voxels, affine):
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 2)
    image.to_filename(path)


def submitted(root, release, found, challenge):
    """Convert a release, take its labels for predictions, and return what is in the submission by file name."""
    (root / "raw").mkdir()
    destination = Destination(root / "raw", 1, "Some")
    convert(release, found, destination)
    shutil.copytree(destination.folder / "labelsTr", root / "predictions")
    (root / "cases").write_text("".join(f"{case.name}\n" for case in release.cases))
    expected = submission.expected_cases(submission.challenge_named(challenge), destination.folder, root / "cases")
    submission.write_submission(root / "predictions", root / "out.zip", submission.challenge_named(challenge), expected)
    with zipfile.ZipFile(root / "out.zip") as packed:
        return {name: nibabel.Nifti1Image.from_bytes(gzip.decompress(packed.read(name))) for name in packed.namelist()}


def check(image, published):
    published = nibabel.load(published)
    assert np.array_equal(np.asanyarray(image.dataobj), np.asanyarray(published.dataobj))
    for field in GEOMETRY:
        assert image.header[field].tobytes() == published.header[field].tobytes(), field


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["Brats18_A_1", "BraTS20_Training_001", "BraTS2021_00000", "BraTS-GLI-00000-000"]),
    shape=SIZES,
    affine=affines(),
    kind=KINDS,
    ending=st.sampled_from([".nii", ".nii.gz"]),
    seed=st.integers(0, 999),
)
def test_brats(name, shape, affine, kind, ending, seed):
    new = name.startswith("BraTS-GLI")
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = root / "release"
        folder.mkdir()
        between, kinds = ("-", ("t1n", "t1c", "t2w", "t2f")) if new else ("_", ("t1", "t1ce", "t2", "flair"))
        for channel in kinds:
            write(folder / f"{name}{between}{channel}{ending}", rng.integers(0, 99, shape).astype(np.int16), affine)
        segmentation = folder / f"{name}{between}seg{ending}"
        write(segmentation, rng.choice([0, 1, 2, 3 if new else 4], shape).astype(kind), affine)
        with archive.opened(folder, root / "unpacked") as found:
            release = brats.read(found.files)
            images = submitted(root, release, found, f"brats{release.name.removeprefix('BraTS ')}")
        assert list(images) == [f"{name}.nii.gz"]
        check(images[f"{name}.nii.gz"], segmentation)


@settings(max_examples=6, deadline=None)
@given(number=st.integers(1, 40), shape=SIZES, affine=affines(), kind=KINDS, seed=st.integers(0, 999))
def test_btcv(number, shape, affine, kind, seed):
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "release").mkdir()
        write(root / f"release/img{number:04d}.nii.gz", rng.integers(-999, 999, shape).astype(np.int16), affine)
        segmentation = root / f"release/label{number:04d}.nii.gz"
        write(segmentation, rng.integers(0, 14, shape).astype(kind), affine)
        with archive.opened(root / "release", root / "unpacked") as found:
            images = submitted(root, btcv.read(found.files), found, "btcv")
        assert list(images) == [f"label{number:04d}.nii.gz"]
        check(images[f"label{number:04d}.nii.gz"], segmentation)
