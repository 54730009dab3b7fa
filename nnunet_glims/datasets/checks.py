"""Check whether a case of a release can be used for training. Every file is read to its last byte."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from nnunet_glims.datasets.cases import Problem, SourceCase
from nnunet_glims.errors import ProcessingError
from nnunet_glims.geometry import Geometry, times
from nnunet_glims.images import read_nifti


def check_case(case: SourceCase, allowed_labels: Collection[int]) -> list[Problem]:
    """Return all problems of a case; none of them is raised as an exception.

    Problems are damaged or truncated files, images that are not 3D, different geometries, values that are not finite, and
    labels other than `allowed_labels` in the segmentation.
    """
    problems = []
    reference: tuple[Path, Geometry] | None = None
    for file in case.files:
        try:
            voxels, geometry = read_nifti(file)
        except ProcessingError as error:
            problems.append(Problem(case.name, str(file), str(error).removeprefix(f"{file}: ")))
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
