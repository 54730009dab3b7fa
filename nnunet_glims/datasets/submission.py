"""Pack predictions into the zip that a challenge expects. All are checked, and only a complete zip gets its name."""

from __future__ import annotations

import gzip
import re
import unicodedata
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from nnunet_glims.datasets.conversion_report import read_conversion_report
from nnunet_glims.errors import ProcessingError, UsageError, cut
from nnunet_glims.files import new_file, read_text
from nnunet_glims.geometry import Geometry, times
from nnunet_glims.images import read_nifti
from nnunet_glims.nnunet.folders import files_by_case, label_maps
from nnunet_glims.processes import Progress, quietly
from nnunet_glims.releases import brats, btcv
from nnunet_glims.validation import nearest

_LISTED = 20


@dataclass(frozen=True)
class Challenge:
    """The file names and labels that a challenge expects.

    Attributes:
        label_map: label that `nnunet-glims convert` writes -> label of the challenge.
        file_name: function from the name of a case to the name of its segmentation's file.
        release: beginning of the names of the challenge's releases in conversion_report.json.
    """

    label_map: Mapping[int, int]
    file_name: Callable[[str], str]
    release: str


def _brats(release: str) -> Challenge:
    labels = brats.RELEASES[release].label_in_release
    return Challenge(labels, lambda case: brats.SUBMISSION_NAME.format(case=case), f"BraTS {release}")


def _btcv_file_name(case: str) -> str:
    """Return the name of a segmentation's file; a case name of another form is kept, because the platform may know it."""
    match = re.fullmatch(btcv.FILE_NAME, f"{case}.nii.gz")
    return btcv.SUBMISSION_NAME.format(number=int(match["number"])) if match else f"{case}.nii.gz"


CHALLENGES = {
    **{f"brats{release}": _brats(release) for release in brats.RELEASES},
    "btcv": Challenge(
        {label: label for label in range(len(btcv.ORGANS) + 1)},
        _btcv_file_name,
        "BTCV",
    ),
}


def challenge_named(name: str) -> Challenge:
    """Return the challenge of that name; raise `UsageError` with the nearest known name if there is none."""
    if name not in CHALLENGES:
        raise UsageError(f"challenge {name!r} is unknown: {nearest(name, list(CHALLENGES))}")
    return CHALLENGES[name]


@dataclass(frozen=True)
class Expected:
    """The cases to submit.

    Attributes:
        images: case -> an image whose geometry the segmentation must have; None if there is no image.
        label_map: label in the predictions -> label of the challenge.
    """

    images: Mapping[str, Path | None]
    label_map: Mapping[int, int]


def expected_cases(challenge: Challenge, dataset: Path | None, cases: Path | None) -> Expected:
    """Return the cases to submit, and the labels to give them.

    Args:
        challenge: gives the labels if the data set has no conversion_report.json.
        dataset: folder DatasetNNN_NAME in nnUNet_raw. Its images give the geometry, its conversion_report.json the labels.
        cases: text file with one case per line; None takes the cases in the data set's imagesTs.

    Raises:
        UsageError: a folder or file is missing, there is no test case, or the data set belongs to another challenge.
    """
    images: dict[str, Path] = {}
    label_map = challenge.label_map
    test: list[str] = []
    if dataset is not None:
        if not dataset.is_dir():
            raise UsageError(f"{dataset}: there is no such folder; nnUNet_raw has the data sets DatasetNNN_NAME")
        for part in ("imagesTr", "imagesTs"):
            files = files_by_case(dataset / part, (".nii.gz", ".nii"))
            found = {name.removesuffix("_0000"): file for name, file in files.items() if name.endswith("_0000")}
            images |= found
        test = sorted(found)
        if (report := read_conversion_report(dataset)) is not None:
            if not report.release.startswith(challenge.release):
                raise UsageError(
                    f"{dataset}: was converted from {report.release}, which is submitted to another challenge: "
                    f"{', '.join(CHALLENGES)} are known (--challenge)"
                )
            label_map = report.label_in_release
    if cases is None:
        if not test:
            raise UsageError(
                f"{dataset}: has no test cases (imagesTs): list the cases in a text file, and give it with --cases"
            )
        return Expected({name: images[name] for name in test}, label_map)
    lines = [unicodedata.normalize("NFC", line.strip()) for line in read_text(cases).splitlines() if line.strip()]
    names = [line.removesuffix(".gz").removesuffix(".nii") for line in lines]
    if not names:
        raise UsageError(f"{cases}: lists no case")
    seen = set()
    for name in names:
        if name in seen or "/" in name or "\\" in name or not name.isprintable():
            raise UsageError(
                f"{cases}: '{cut(name)}' is there twice or is no case's name: one name a line, without a folder"
            )
        seen.add(name)
    return Expected({name: images.get(name) for name in names}, label_map)


def write_submission(
    predictions: Path, out: Path, challenge: Challenge, expected: Expected, progress: Progress = quietly
) -> dict[str, int]:
    """Check all predictions, then write them to a zip, which is complete or does not exist.

    The segmentations are uint8 NIfTI files at the zip's top level. If there is an image, they have its header, so that their
    geometry is that of the release to the last bit.

    Returns:
        File name in the zip -> number of voxels that are not background.

    Raises:
        UsageError: `out` exists or does not end in .zip, or the predictions have problems, which one message lists.
        ProcessingError: the zip cannot be written, an image of the data set is damaged, or all problems are
            damaged predictions.
    """
    if out.suffix != ".zip":
        raise UsageError(f"{out}: the submission is a zip: let the name end in .zip")
    if out.exists():
        raise UsageError(f"{out}: is there already: choose another name, or delete it")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: there is no such folder to write {out.name} to")
    files = _predictions(predictions)
    problems = [f"{name}: there is no prediction" for name in sorted(expected.images.keys() - files.keys())]
    problems += [f"{name}: {files[name]}: no such case is expected" for name in sorted(files.keys() - expected.images)]
    names = sorted(expected.images.keys() & files.keys())
    foreground = {}
    damaged = 0
    with new_file(out) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            segmentations = (
                (name, _segmentation(files[name], expected.images[name], expected.label_map)) for name in names
            )
            for name, (segmentation, found) in progress(segmentations, "Checking", len(names)):
                problems += [f"{name}: {files[name]}: {problem}" for problem in found]
                damaged += sum(isinstance(problem, ProcessingError) for problem in found)
                if segmentation is not None and not problems:
                    inside = challenge.file_name(name)
                    foreground[inside] = int(np.count_nonzero(np.asanyarray(segmentation.dataobj)))
                    content = gzip.compress(segmentation.to_bytes(), 6, mtime=0)
                    archive.writestr(zipfile.ZipInfo(inside), content)  # without a time stamp: same input, same bytes
        if problems:
            raise (ProcessingError if damaged == len(problems) else UsageError)(_listed(problems))
    return foreground


def _listed(problems: Sequence[str]) -> str:
    lines = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  … and {len(problems) - _LISTED} more")
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return "\n".join([f"the predictions have {count}; nothing was written:", *lines])


def _predictions(folder: Path) -> dict[str, Path]:
    """Return case -> label map for a folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    found = label_maps(folder)
    if not found:
        raise UsageError(f"{folder}: there are no predictions (*.nii.gz, *.nii)")
    return found


def _segmentation(
    file: Path, image: Path | None, label_map: Mapping[int, int]
) -> tuple[nibabel.Nifti1Image | None, Sequence[str | ProcessingError]]:
    """Return the image to write into the zip, or None, and the problems of the prediction."""
    try:
        voxels, geometry = read_nifti(file)
    except ProcessingError as error:
        return None, [ProcessingError(str(error).removeprefix(f"{file}: "))]
    if voxels.ndim != 3:
        return None, [f"has {voxels.ndim} axes ({times(voxels.shape)}), not 3"]
    problems = []
    if image is not None:
        try:
            difference = geometry.difference(Geometry.of_file(image))
        except RuntimeError:
            raise ProcessingError(f"{image}: this image of the data set cannot be read") from None
        if difference is not None:
            problems.append(f"{difference} as {image}")
    unknown = sorted(set(np.unique(voxels).tolist()) - set(label_map))
    if unknown:
        shown = ", ".join(f"{label:g}" for label in unknown[:8])
        problems.append(f"has labels {shown}; only {', '.join(map(str, sorted(label_map)))} may be there")
    if problems:
        return None, problems
    changed = np.zeros(voxels.shape, np.uint8)
    for ours, theirs in label_map.items():
        changed[voxels == ours] = theirs
    with nibabel.openers.ImageOpener(str(image or file)) as opened:
        header = nibabel.Nifti1Header.from_fileobj(opened)
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0  # the image's display range, not the labels'
    return nibabel.Nifti1Image(changed, None, header), []
