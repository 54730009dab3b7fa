"""Is a case of a release fit for training? Every file is read to its last byte."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection
from pathlib import Path

import nibabel
import numpy as np

from nnunet_glims.datasets.cases import Problem, SourceCase
from nnunet_glims.geometry import Geometry, times


def read_voxels(file: Path) -> np.ndarray:
    """All voxels, with the file's scaling; raises what gzip, nibabel or NumPy do where the file is damaged."""
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)  # checks the length and the sum over all bytes
    return np.asanyarray(nibabel.Nifti1Image.from_bytes(content).dataobj)


def check_case(case: SourceCase, allowed_labels: Collection[int]) -> list[Problem]:
    """All that is wrong with a case: files unreadable or truncated, not 3D, of different geometry, with values that are
    not finite, or with labels other than `allowed_labels`."""
    problems = []
    reference: tuple[Path, Geometry] | None = None
    for file in case.files:
        try:
            geometry = Geometry.of_file(file)
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
            problems.append(Problem(case.name, str(file), f"has {voxels.ndim} axes ({times(voxels.shape)}), not 3"))
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
