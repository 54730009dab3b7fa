"""A small synthetic brain tumour data set in nnU-Net's raw format, with the channels and regions of BraTS.

It serves to try the whole pipeline in minutes on a CPU, and not to measure how well a network segments patients.

Arrays here are (x, y, z): x increases to the right, y to the front and z to the top of the head (RAS+).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import fft, ndimage

from nnunet_glims.errors import UsageError
from nnunet_glims.files import new_folder, read_json
from nnunet_glims.releases import brats

CHANNELS = tuple(brats.CHANNELS[name] for name in ("flair", "t1ce", "t1", "t2"))
FILE_ENDING = ".nii.gz"

NCR, ED, ET = brats.NECROSIS, brats.EDEMA, brats.ENHANCING

PHANTOM_VERSION = 1
"""Increased when the voxels for the same parameters change, so that an older data set is recognised."""
SMALLEST_AXIS = 28
"""Fewest voxels along an axis, for which a tumour still has all its regions."""

# Signal of each tissue (row) in FLAIR, T1ce, T1 and T2 in arbitrary units. The code of a tissue is its row.
AIR, WHITE, GREY, FLUID, NECROSIS, EDEMA, RIM = range(7)
SIGNAL = np.array(
    [
        [0.00, 0.00, 0.00, 0.00],
        [0.42, 0.72, 0.80, 0.34],
        [0.56, 0.54, 0.58, 0.52],
        [0.14, 0.24, 0.24, 0.98],
        [0.42, 0.26, 0.30, 0.88],
        [0.92, 0.52, 0.50, 0.80],
        [0.80, 1.05, 0.58, 0.66],
    ]
)


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic head.

    Attributes:
        channels: (4, X, Y, Z) int16: FLAIR, T1ce, T1 and T2, zero outside of the brain and positive inside.
        labels: (X, Y, Z) uint8: 0 background, 1 necrotic core, 2 edema, 3 enhancing rim.
    """

    channels: np.ndarray
    labels: np.ndarray


def make_case(
    rng: np.random.Generator,
    shape: tuple[int, int, int] = (64, 72, 60),
    spacing_mm: tuple[float, float, float] = (2.5, 2.5, 2.5),
) -> PhantomCase:
    """Draw one head with one tumour.

    Args:
        rng: random numbers; every call draws another head.
        shape: voxels along x, y, z. The brain fills about 86 % of each axis.
        spacing_mm: voxel size along x, y, z in mm.

    Raises:
        UsageError: the shape is too small for a tumour with all its regions, or the spacing is not positive.
    """
    _check_geometry(shape, spacing_mm)
    tissue, position = _draw_brain(rng, shape)
    semi_axes_mm = 0.43 * np.multiply(shape, spacing_mm)
    labels = _draw_tumour(rng, tissue, position * semi_axes_mm[:, None, None, None], semi_axes_mm.mean())
    for label, code in ((NCR, NECROSIS), (ED, EDEMA), (ET, RIM)):
        tissue[labels == label] = code
    channels = np.stack([_acquire(rng, tissue, SIGNAL[:, channel]) for channel in range(len(CHANNELS))])
    return PhantomCase(channels, labels)


def write_raw_dataset(
    raw_folder: Path,
    dataset_name: str = "Dataset900_GLIMSDemo",
    cases: int = 12,
    test_cases: int = 2,
    shape: tuple[int, int, int] = (64, 72, 60),
    spacing_mm: tuple[float, float, float] = (2.5, 2.5, 2.5),
    seed: int = 2024,
) -> Path:
    """Write a phantom dataset to `raw_folder/dataset_name` and return that folder.

    It consists of imagesTr, labelsTr, imagesTs, labelsTs (true labels of the test cases, which nnU-Net ignores) and a
    dataset.json with the three regions of BraTS. The first cases do not depend on the number of cases. A data set that
    is there and was written with the same arguments is returned unchanged.

    Args:
        raw_folder: nnU-Net's raw folder; it is made where it does not exist.
        dataset_name: a name of nnU-Net's form: "Dataset", three digits, "_" and a name.
        cases, test_cases: number of training cases (at least 1) and of test cases (0 or more).
        shape, spacing_mm: voxels, and voxel size in mm, along x, y, z.
        seed: 0 or more; the same seed gives the same voxels.

    Raises:
        UsageError: an argument is out of range, the folder exists with other content, or another data set has the same
            number.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", dataset_name):
        raise UsageError(f"dataset name {dataset_name!r} is not of nnU-Net's form: use e.g. Dataset900_Demo")
    if cases < 1 or test_cases < 0 or seed < 0:
        raise UsageError(
            f"cases={cases}, test_cases={test_cases}, seed={seed}: "
            "use at least 1 training case, and no negative number of test cases or seed"
        )
    _check_geometry(shape, spacing_mm)
    parameters = {
        "version": PHANTOM_VERSION,
        "cases": cases,
        "test_cases": test_cases,
        "shape": [int(n) for n in shape],
        "spacing_mm": [float(mm) for mm in spacing_mm],
        "seed": seed,
    }
    folder = Path(raw_folder) / dataset_name
    if folder.exists():
        _check_same_dataset(folder, parameters)
        return folder
    number = dataset_name.split("_")[0]
    others = sorted(other.name for other in folder.parent.glob(f"{number}_*"))
    if others:
        raise UsageError(
            f"{folder.parent} has {others[0]} already, and nnU-Net wants every number once: "
            f"give {dataset_name} another number"
        )

    # nnU-Net lists folders by the prefix "DatasetNNN", so it does not see the unfinished one, whose name has a leading dot.
    with new_folder(folder) as unfinished:
        affine = np.diag([*spacing_mm, 1.0])
        for split, count in (("Tr", cases), ("Ts", test_cases)):
            (unfinished / f"images{split}").mkdir()
            (unfinished / f"labels{split}").mkdir()
            for index in range(count):
                case = make_case(_generator(seed, split, index), shape, spacing_mm)
                _write_case(unfinished, split, index, case, affine)
        _write_dataset_json(unfinished, dataset_name, cases, parameters)
    return folder


def case_name(split: str, index: int) -> str:
    """Return the name of a case, without channel and file ending, from its split ("Tr" or "Ts") and its index in the split."""
    return f"phantom_{index:03d}" if split == "Tr" else f"phantom_test_{index:03d}"


def _check_geometry(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
    if len(shape) != 3 or min(shape) < SMALLEST_AXIS:
        raise UsageError(
            f"shape {tuple(shape)} is too small for a tumour: use 3 axes of {SMALLEST_AXIS} voxels or more"
        )
    if len(spacing_mm) != 3 or not min(spacing_mm) > 0:
        raise UsageError(f"spacing {tuple(spacing_mm)} mm is not usable: give 3 values above 0")


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    stream = np.random.SeedSequence((seed, ("Tr", "Ts").index(split), index))
    return np.random.Generator(np.random.Philox(stream))


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], waves: int) -> np.ndarray:
    """Return a smooth random field of mean 0 and standard deviation 1, with at most `waves` half waves along an axis."""
    coefficients = rng.standard_normal((waves + 1,) * 3)
    coefficients[0, 0, 0] = 0
    field = fft.idctn(coefficients, s=shape, norm="ortho")
    return field / field.std()


def _draw_brain(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tissue codes (X, Y, Z) of a healthy brain, and each voxel's position (3, X, Y, Z) before deformation.

    Positions are relative to the centre of the brain, in units of its semi-axes: its surface is at a distance of about
    1.
    """
    axes = [(np.arange(n) - (n - 1) / 2) / (0.43 * n) for n in shape]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))
    wobble = np.stack([_smooth_field(rng, shape, 3) for _ in range(3)])
    x, y, z = position * rng.uniform(1.0, 1.08, (3, 1, 1, 1)) + 0.02 * wobble
    side = np.abs(x)
    radius = np.sqrt((x / (1 - 0.1 * y)) ** 2 + y**2 + z**2)
    fold = np.abs(_smooth_field(rng, shape, 16))
    # The fissure between the hemispheres is like another fold, but deeper and straight.
    cleft = np.where(radius > 0.5, side, np.inf)

    tissue = np.full(shape, WHITE, dtype=np.uint8)
    tissue[(1 - radius < 0.15 + 0.16 * np.exp(-((fold / 0.5) ** 2))) | (cleft < 0.13)] = GREY
    tissue[_ellipsoids(side, y, z, centre=(0.32, 0.02, -0.05), semi_axes=(0.11, 0.26, 0.16))] = GREY
    tissue[(1 - radius < 0.02 + 0.13 * np.exp(-((fold / 0.2) ** 2))) | (cleft < 0.025)] = FLUID
    width = rng.uniform(0.8, 1.3)
    ventricle = (0.085 * width, 0.48, 0.14 * width)
    tissue[_ellipsoids(side, y, z + 0.35 * y**2, centre=(0.12, 0.0, 0.15), semi_axes=ventricle)] = FLUID
    tissue[radius >= 1] = AIR
    return tissue, position


def _ellipsoids(side, y, z, centre, semi_axes) -> np.ndarray:
    """Return the mask of two ellipsoids, one in each hemisphere."""
    offsets = ((p - c) / a for p, c, a in zip((side, y, z), centre, semi_axes, strict=True))
    return sum(offset**2 for offset in offsets) < 1


def _draw_tumour(
    rng: np.random.Generator, tissue: np.ndarray, position_mm: np.ndarray, brain_radius_mm: float
) -> np.ndarray:
    """Return the labels (X, Y, Z) of one tumour within the brain: necrosis, surrounded by an enhancing rim and by edema."""
    shape = tissue.shape
    depth = ndimage.distance_transform_edt(tissue != AIR)
    possible = np.argwhere((tissue == WHITE) & (depth > 0.4 * depth.max()))
    x, y, z = rng.choice(possible)
    centre_mm = position_mm[:, x, y, z]
    stretch = rng.uniform(0.75, 1.3, 3)
    offset = (position_mm - centre_mm[:, None, None, None]) / (stretch / stretch.mean())[:, None, None, None]
    distance = np.linalg.norm(offset, axis=0) / brain_radius_mm

    core_radius = rng.uniform(0.26, 0.36)
    edema_radius = core_radius + rng.uniform(0.12, 0.22)
    necrosis_radius = core_radius * rng.uniform(0.55, 0.8)
    # Edema spreads in white matter; it hardly enters the cortex, and never the ventricles.
    resistance = np.choose(tissue, [np.inf, 1.0, 1.4, np.inf, 0, 0, 0])
    brain = tissue != AIR

    core = _central(brain & (distance < core_radius * _uneven(rng, shape, 0.22)), distance)
    edema = distance * resistance < edema_radius * _uneven(rng, shape, 0.28)
    whole = _central(core | edema, distance)
    necrosis = (distance < necrosis_radius * _uneven(rng, shape, 0.3)) & ndimage.binary_erosion(core)

    labels = np.zeros(shape, dtype=np.uint8)
    labels[whole] = ED
    labels[core] = ET
    labels[necrosis] = NCR
    return labels


def _uneven(rng: np.random.Generator, shape: tuple[int, ...], amount: float) -> np.ndarray:
    """Return factors around 1 that make the surface of a ball irregular; at least 0.5, so that its centre stays inside."""
    field = 0.8 * _smooth_field(rng, shape, 7) + 0.6 * _smooth_field(rng, shape, 14)
    return np.clip(1 + amount * field, 0.5, 1.8)


def _central(mask: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Return the component of `mask` that contains the voxel of smallest distance, with holes filled."""
    parts, _ = ndimage.label(mask)
    return ndimage.binary_fill_holes(parts == parts.flat[distance.argmin()])


def _acquire(rng: np.random.Generator, tissue: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Return one int16 MR channel (X, Y, Z), with partial volume, texture, bias field, Rician noise and scanner gain."""
    brain = tissue != AIR
    image = (signal * rng.uniform(0.95, 1.05, signal.shape))[tissue]
    image = ndimage.gaussian_filter(image, 0.6)
    image *= 1 + 0.04 * _smooth_field(rng, tissue.shape, 20)
    image *= np.exp(0.1 * _smooth_field(rng, tissue.shape, 2))
    noise = 0.03 * rng.standard_normal((2, *tissue.shape))
    image = np.hypot(image + noise[0], noise[1]) * rng.uniform(500, 1200)
    return np.where(brain, np.maximum(np.rint(image), 1), 0).astype(np.int16)


def _write_case(folder: Path, split: str, index: int, case: PhantomCase, affine: np.ndarray) -> None:
    images, labels = _case_files(split, index)
    for image, channel in zip(images, case.channels, strict=True):
        nibabel.save(nibabel.Nifti1Image(channel, affine), folder / image)
    nibabel.save(nibabel.Nifti1Image(case.labels, affine), folder / labels)


def _case_files(split: str, index: int) -> tuple[list[str], str]:
    """Return the paths of a case's channels and labels within the folder of the data set."""
    name = case_name(split, index)
    images = [f"images{split}/{name}_{channel:04d}{FILE_ENDING}" for channel in range(len(CHANNELS))]
    return images, f"labels{split}/{name}{FILE_ENDING}"


def _write_dataset_json(folder: Path, dataset_name: str, cases: int, parameters: dict) -> None:
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    generate_dataset_json(
        str(folder),
        channel_names={str(number): name for number, name in enumerate(CHANNELS)},
        labels=dict(brats.LABELS),
        num_training_cases=cases,
        file_ending=FILE_ENDING,
        regions_class_order=brats.REGIONS_CLASS_ORDER,
        dataset_name=dataset_name,
        description="Synthetic brain tumours for trying nnunet-glims; not for measuring accuracy.",
        license="CC0-1.0",
        converted_by="nnunet_glims.demo.phantom",
        glims_phantom=parameters,
    )


def _check_same_dataset(folder: Path, parameters: dict) -> None:
    way_out = "delete it or choose another dataset name"
    try:
        content = read_json(folder / "dataset.json")
    except UsageError:
        content = None
    found = content.get("glims_phantom") if isinstance(content, dict) else None
    if found is None:
        raise UsageError(f"{folder} exists and was not written by this phantom generator: {way_out}")
    if found != parameters:
        raise UsageError(f"{folder} exists with other parameters ({found}, now {parameters}): {way_out}")
    for split, count in (("Tr", parameters["cases"]), ("Ts", parameters["test_cases"])):
        for index in range(count):
            images, labels = _case_files(split, index)
            for path in (*images, labels):
                if not (folder / path).is_file():
                    raise UsageError(f"{folder} exists but lacks {path}: {way_out}")
