"""Small releases in the layouts that the challenges publish."""

from pathlib import Path

import nibabel
import numpy as np

SHAPE = (9, 8, 7)
AFFINE = np.array([[-1.0, 0.02, 0, 12.5], [0.02, -1.1, 0, 239], [0, 0, 1.2, -3], [0, 0, 0, 1]])
"""Oblique a little, anisotropic, and facing the other way than NIfTI's axes."""
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] * [1.0, 1.1, 1.2]

BRATS = ("2018", "2020", "2021", "2023")


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.to_filename(path)
    return path


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)


def labels(values: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Every value is there."""
    drawn = np.random.default_rng(seed).choice(values, SHAPE).astype(np.int16)
    drawn.flat[: len(values)] = values
    return drawn


def brats_names(release: str) -> list[str]:
    """Six cases with segmentation, one without; in 2023 two of the patients come twice."""
    if release == "2023":
        return [
            f"BraTS-GLI-{patient:05d}-{time:03d}"
            for patient, time in [(0, 0), (0, 1), (2, 0), (3, 0), (3, 1), (5, 0), (6, 0)]
        ]
    pattern = {"2018": "Brats18_TCIA{:02d}_1", "2020": "BraTS20_Training_{:03d}", "2021": "BraTS2021_{:05d}"}[release]
    return [pattern.format(number) for number in range(7)]


def brats_folder(release: str, index: int, name: str) -> str:
    if release == "2018":
        return f"MICCAI_BraTS_2018/{'LGG' if index % 2 else 'HGG'}/{name}"
    return {"2020": f"MICCAI_BraTS2020_TrainingData/{name}", "2021": name, "2023": name}[release]


def write_brats(folder: Path, release: str, ending: str = ".nii.gz") -> Path:
    new = release == "2023"
    kinds = ("t1n", "t1c", "t2w", "t2f") if new else ("t1", "t1ce", "t2", "flair")
    between = "-" if new else "_"
    names = brats_names(release)
    for index, name in enumerate(names):
        inside = folder / brats_folder(release, index, name)
        for channel, kind in enumerate(kinds):
            write(inside / f"{name}{between}{kind}{ending}", image(10 * index + channel))
        if name != names[-1]:
            label = f"{name}{between}seg{ending}"
            if release == "2020" and index == 3:
                label = f"W39_1998.09.19_Segm{ending}"
            write(inside / label, labels((0, 1, 2, 3 if new else 4), index))
    (folder / "survival_info.csv").write_text("what else lies in a release\n")
    return folder


def write_btcv(folder: Path, numbers=range(1, 8), test=(61,), layout: str = "RawData") -> Path:
    where = {
        "RawData": ("RawData/Training/img", "RawData/Training/label", "RawData/Testing/img"),
        "averaged": ("averaged-training-images", "averaged-training-labels", "averaged-testing-images"),
        "flat": ("", "", ""),
    }[layout]
    for number in numbers:
        write(folder / where[0] / f"img{number:04d}.nii.gz", image(number))
        write(folder / where[1] / f"label{number:04d}.nii.gz", labels(tuple(range(14)), number))
    for number in test:
        write(folder / where[2] / f"img{number:04d}.nii.gz", image(number))
    return folder
