"""Strides of every stage of a network, chosen for a patch size and a spacing.

The rule is that of nnU-Net's planner: an axis is halved while its voxels are less than twice as coarse as those of the finest
axis, so that anisotropic patches become isotropic on the way down. The planner chooses the patch as well; here it is given.
An axis is therefore not halved where its size is odd, or where it would become smaller than 2 voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from nnunet_glims.errors import UsageError

Triple = tuple[int, int, int]

COARSE_RATIO = 2.0
SMALLEST_SIZE = 2


def check_patch_size(patch_size: Sequence[int] | None) -> Triple:
    """Return the patch size as three integers (D, H, W in voxels); raise `UsageError` for anything else."""
    if patch_size is None or isinstance(patch_size, str | int) or len(patch_size) != 3:
        raise UsageError(
            f"patch size {patch_size!r} is not three-dimensional: give three sizes in voxels, for example (96, 96, 96). "
            "These networks run 3D configurations only (3d_fullres, 3d_lowres)"
        )
    if any(int(size) != size or size < 1 for size in patch_size):
        raise UsageError(f"patch size {list(patch_size)} must be three positive whole numbers of voxels")
    return triple(int(size) for size in patch_size)


def triple(values: Iterable[int]) -> Triple:
    """Return three numbers as a tuple whose length type checkers know."""
    first, second, third = values
    return first, second, third


def stage_strides(
    patch_size: Sequence[int], spacing: Sequence[float] | None = None, stages: int = 6
) -> list[list[int]]:
    """Return the strides of each stage, by nnU-Net's convention: the first stage has full resolution ([1, 1, 1]).

    Args:
        patch_size: voxels along D, H, W.
        spacing: mm along D, H, W; None means isotropic.
        stages: number of resolutions, the first included.

    Raises:
        UsageError: patch size or spacing are not three positive numbers.
    """
    size = list(check_patch_size(patch_size))
    mm = [1.0, 1.0, 1.0] if spacing is None else [float(value) for value in spacing]
    if len(mm) != 3 or not all(0 < value < float("inf") for value in mm):
        raise UsageError(f"spacing {spacing!r} must be three positive numbers of mm (D, H, W)")

    strides = [[1, 1, 1]]
    for _ in range(stages - 1):
        divisible = [axis for axis in range(3) if size[axis] % 2 == 0 and size[axis] // 2 >= SMALLEST_SIZE]
        finest = min((mm[axis] for axis in divisible), default=0.0)
        halved = [axis for axis in divisible if mm[axis] / finest < COARSE_RATIO]
        strides.append([2 if axis in halved else 1 for axis in range(3)])
        for axis in halved:
            size[axis] //= 2
            mm[axis] *= 2
    return strides


def check_strides(strides: Sequence[Sequence[int]], stages: int) -> list[Triple]:
    """Check strides from a user or a plans file, and return them as triples.

    Raises:
        UsageError: they are not one triple of 1 and 2 for each stage, or the first is not (1, 1, 1).
    """
    if len(strides) != stages or any(len(stride) != 3 for stride in strides):
        raise UsageError(
            f"strides {strides!r} must be {stages} triples, one for each stage, the first [1, 1, 1]; "
            "or leave them out (strides=None) and topology chooses"
        )
    triples = [triple(map(int, stride)) for stride in strides]
    if any(step not in (1, 2) for triple in triples for step in triple) or triples[0] != (1, 1, 1):
        raise UsageError(f"strides {strides!r} must be made of 1 and 2, and start with [1, 1, 1]")
    return triples


def total_stride(strides: Sequence[Sequence[int]]) -> Triple:
    """Return the factor by which all stages together divide each axis."""
    return triple(prod(stride[axis] for stride in strides) for axis in range(3))


def stage_sizes(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[Triple]:
    """Return the feature map's size of each stage; raise `UsageError` where a stride does not divide a size."""
    size = check_patch_size(patch_size)
    sizes = []
    for stage, stride in enumerate(strides):
        for axis in range(3):
            if size[axis] % stride[axis]:
                total = total_stride(strides[: stage + 1])[axis]
                raise UsageError(
                    f"patch size {list(patch_size)} cannot be divided by {total} along axis {axis} as strides "
                    f"{[list(step) for step in strides]} ask: choose a multiple of {total}, or strides=None"
                )
        size = triple(length // step for length, step in zip(size, stride, strict=True))
        sizes.append(size)
    return sizes


def scales(strides: Sequence[Sequence[int]], outputs: int) -> list[list[float]]:
    """Return the resolution of the `outputs` finest stages relative to the patch, as deep supervision needs it."""
    return [[1 / step for step in total_stride(strides[: stage + 1])] for stage in range(outputs)]
