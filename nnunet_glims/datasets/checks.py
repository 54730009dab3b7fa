"""Is a case of a release fit for training? Every file is read to its last byte."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_glims.datasets.cases import Problem, SourceCase

SPACING_TOLERANCE_MM = 1e-3
ORIGIN_TOLERANCE_MM = 1e-2
DIRECTION_TOLERANCE = 1e-3
"""By how much the geometry of a case's files may differ: releases store it with few digits."""


@dataclass(frozen=True)
class Geometry:
    """Where voxels lie, as nnU-Net reads it (SimpleITK: x, y, z)."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def difference(self, other: Geometry) -> str | None:
        """What differs beyond the tolerances, in words; None if nothing does."""
        if self.size != other.size:
            return f"has {_times(self.size)} voxels, not {_times(other.size)}"
        for what, tolerance in (
            ("spacing", SPACING_TOLERANCE_MM),
            ("origin", ORIGIN_TOLERANCE_MM),
            ("direction", DIRECTION_TOLERANCE),
        ):
            mine, its = getattr(self, what), getattr(other, what)
            if not np.allclose(mine, its, rtol=0, atol=tolerance):
                return f"has {what} {_rounded(mine)}, not {_rounded(its)}"
        return None


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]


def read_voxels(file: Path) -> np.ndarray:
    """All voxels, with the file's scaling; raises what gzip, nibabel or NumPy do where the file is damaged."""
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)  # checks the length and the sum over all bytes
    return np.asanyarray(nibabel.Nifti1Image.from_bytes(content).dataobj)


def _geometry(file: Path) -> Geometry:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return Geometry(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def check_case(case: SourceCase, allowed_labels: Collection[int]) -> list[Problem]:
    """All that is wrong with a case: files unreadable or truncated, not 3D, of different geometry, with values that are
    not finite, or with labels other than `allowed_labels`."""
    problems = []
    reference: tuple[Path, Geometry] | None = None
    for file in case.files:
        try:
            geometry = _geometry(file)
            voxels = read_voxels(file)
        except (
            OSError,
            EOFError,
            ValueError,
            zlib.error,
            RuntimeError,
            nibabel.filebasedimages.ImageFileError,
        ) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            problems.append(
                Problem(case.name, str(file), f"cannot be read: {lines[-1] if lines else type(error).__name__}")
            )
            continue
        if voxels.ndim != 3:
            problems.append(Problem(case.name, str(file), f"has {voxels.ndim} axes ({_times(voxels.shape)}), not 3"))
            continue
        if reference is None:
            reference = (file, geometry)
        elif difference := geometry.difference(reference[1]):
            problems.append(Problem(case.name, str(file), f"{difference} as {reference[0].name}"))
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            count = int((~np.isfinite(voxels)).sum())
            problems.append(Problem(case.name, str(file), f"{count} voxels are not finite"))
        elif file == case.label:
            unknown = sorted(set(np.unique(voxels).tolist()) - set(allowed_labels))
            if unknown:
                shown = ", ".join(f"{label:g}" for label in unknown[:8])
                allowed = ", ".join(map(str, sorted(allowed_labels)))
                problems.append(Problem(case.name, str(file), f"has labels {shown}; only {allowed} may be there"))
    return problems
