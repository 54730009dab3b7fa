"""Check whether a case of a release can be used for training. Every file is read to its last byte."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from nnunet_glims.datasets.cases import Problem, SourceCase
from nnunet_glims.errors import ProcessingError
from nnunet_glims.geometry import Geometry, times
from nnunet_glims.images import not_finite, read_nifti

SMALLEST_SPACING_MM, LARGEST_SPACING_MM = 1e-4, 1e3
"""Limits of the distance between voxels."""
_SHOWN = 8
"""Largest number of wrong labels in a message."""


def check_case(case: SourceCase, allowed_labels: Collection[int]) -> list[Problem]:
    """Return all problems of a case; none of them is raised as an exception.

    Problems are damaged or truncated files, images that are not 3D, different or impossible geometries, values that are not
    finite, and labels other than `allowed_labels` in the segmentation.
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
        if impossible := _impossible(geometry):
            problems.append(Problem(case.name, str(file), impossible))
        elif reference is None:
            reference = (file, geometry)
        elif difference := geometry.difference(reference[1]):
            problems.append(Problem(case.name, str(file), f"{difference} as {reference[0].name}"))
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            problems.append(Problem(case.name, str(file), not_finite(voxels)))
        elif file == case.label and (found := _label_problem(voxels, allowed_labels)):
            problems.append(Problem(case.name, str(file), found))
    return problems


def _impossible(geometry: Geometry) -> str | None:
    """Return why no medical image has this geometry, in words; None if one may have it."""
    if not np.isfinite((*geometry.spacing, *geometry.origin, *geometry.direction)).all():
        return "its position in space is not finite: the header is damaged"
    if min(geometry.spacing) < SMALLEST_SPACING_MM or max(geometry.spacing) > LARGEST_SPACING_MM:
        spacing = "×".join(f"{value:.3g}" for value in geometry.spacing)
        return f"has spacing {spacing} mm; {SMALLEST_SPACING_MM:g} to {LARGEST_SPACING_MM:g} mm are possible"
    return None


def _label_problem(voxels: np.ndarray, allowed_labels: Collection[int]) -> str | None:
    """Return which values of a label map are not among the allowed labels, in words; None if all are."""
    values, counts = np.unique(voxels, return_counts=True)
    is_bad = ~np.isin(values, list(allowed_labels))
    if not is_bad.any():
        return None
    bad = values[is_bad].tolist()
    shown = ", ".join(map(_written, bad[:_SHOWN])) + (f" and {len(bad) - _SHOWN} others" if len(bad) > _SHOWN else "")
    allowed = ", ".join(map(str, sorted(allowed_labels)))
    problem = f"has labels {shown}; only {allowed} may be there ({counts[is_bad].sum()} voxels have others)"
    if any(value != int(value) for value in bad):
        problem += ". Labels are whole numbers: other values come from interpolation or from another data type"
    return problem


def _written(value: float) -> str:
    """Return a value with as many digits as tell it from a whole number, at least six."""
    if value == int(value):
        return str(int(value))
    return next(text for text in (f"{value:.{digits}g}" for digits in (6, 9, 12, 17)) if float(text) != round(value))
