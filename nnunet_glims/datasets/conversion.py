"""Convert a release to nnU-Net's raw layout. All files are checked before any is written; a crash leaves no partial file."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np

from nnunet_glims.datasets import splits
from nnunet_glims.datasets.archive import Source
from nnunet_glims.datasets.cases import Problem, Release, SourceCase
from nnunet_glims.datasets.checks import check_case
from nnunet_glims.datasets.destination import Destination
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import (
    check_free_space,
    move_folder,
    new_file,
    read_json,
    sync,
    working_folder,
    write_bytes,
    write_json,
)
from nnunet_glims.processes import Progress, processes, quietly

REPORT = "conversion_report.json"
_PLAN = "conversion_plan.json"
_DATASET = "dataset"
_VERSION = 1
"""Raised when the same release is converted to other files, so that a conversion by an older version is not resumed."""
_SHOWN = 80
"""Characters of the longest value that an error message shows."""
Transfer = Literal["copy", "symlink", "move"]


class BadRelease(UsageError):
    """A release with problems, all of which the message lists."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(
            f"the release has {len(problems)} problem{'s' if len(problems) != 1 else ''}; nothing was written:\n{lines}\n"
            "Repair or download these files again, or convert the other cases with --skip-bad"
        )


def convert(
    release: Release,
    source: Source,
    destination: Destination,
    *,
    transfer: Transfer = "copy",
    split: Path | None = None,
    workers: int = 1,
    resume: bool = False,
    skip_bad: bool = False,
    progress: Progress = quietly,
) -> dict[str, Any]:
    """Check a release, then write it to `destination.folder`.

    Args:
        release: the release, as the data set's module returned it.
        source: the files of the release. The report names files relative to its folder.
        destination: folder and name of the converted data set.
        transfer: how files that need no change are transferred; "move" is for files that were unpacked for this conversion.
        split: file with the splits; None takes those of the release or, if a patient has several cases, folds by patient.
            Otherwise nnU-Net draws its own folds.
        workers: number of processes.
        resume: whether to continue an interrupted conversion of the same release.
        skip_bad: whether to leave cases with problems out instead of refusing the release.
        progress: shows how many files are done.

    Returns:
        The content of conversion_report.json.

    Raises:
        BadRelease: the release has problems, and `skip_bad` is not set.
        UsageError: the destination exists, or there is an unfinished conversion that is not to be resumed or differs from
            this one.
        ProcessingError: the disk is full, or a process was killed.
    """
    destination.check()
    with processes(workers) as parallel_map:
        check = partial(check_case, allowed_labels=tuple(release.label_map))
        found = progress(parallel_map(check, release.cases), "Checking", len(release.cases))
        problems = [*release.problems, *(problem for of_case in found for problem in of_case)]
        if problems and not skip_bad:
            raise BadRelease(problems)
        bad = {problem.case for problem in problems}
        cases = [case for case in release.cases if case.name not in bad]
        training = [case for case in cases if case.label is not None]
        if not training:
            raise UsageError("no case with a segmentation is left to train on")
        folds = _splits(release, training, split)
        report = {
            "release": release.name,
            "training_cases": [case.name for case in training],
            "test_cases": [case.name for case in cases if case.label is None],
            "skipped": [{"case": p.case, "file": p.file, "problem": p.message} for p in problems],
            "label_in_release": {str(ours): theirs for theirs, ours in sorted(release.label_map.items(), reverse=True)},
            "patients": {case.name: case.patient for case in cases},
            "source_files": {
                case.name: [file.relative_to(source.folder).as_posix() for file in case.files] for case in cases
            },
        }
        _start_or_resume(
            destination,
            {
                **report,
                "source": source.fingerprint,
                "channels": list(release.channels),
                "splits": folds,
                "transfer": transfer,
                "version": _VERSION,
            },
            resume,
        )
        written = destination.unfinished / _DATASET
        files = [file for case in cases for file in _written(case, release, written, transfer)]
        missing = [file for file in files if not file.target.exists() and not file.target.is_symlink()]
        check_free_space(sum(file.nbytes for file in missing), written, f"for {destination.dataset}")
        for _ in progress(parallel_map(_WrittenFile.write, missing), "Writing", len(missing)):
            pass
    _describe(written, destination.name, release, len(training), folds, report)
    move_folder(written, destination.folder)
    shutil.rmtree(destination.unfinished, ignore_errors=True)
    return report


def _splits(release: Release, training: Sequence[SourceCase], split: Path | None) -> splits.Splits | None:
    names = [case.name for case in training]
    if split is not None:
        return splits.from_file(split, names)
    if release.splits is not None:
        there = set(names)
        return [{part: [name for name in of if name in there] for part, of in fold.items()} for fold in release.splits]
    patient_of = {case.name: case.patient for case in training}
    patients = set(patient_of.values())
    if len(patients) in (1, len(names)):
        return None
    return splits.by_patient(patient_of)


def _start_or_resume(destination: Destination, plan: Mapping[str, Any], resume: bool) -> None:
    """Make the unfinished folder, or check that the existing one belongs to the same conversion."""
    folder = destination.unfinished
    subfolders = ("imagesTr", "labelsTr", *(("imagesTs",) if plan["test_cases"] else ()))
    if folder.exists():
        there = read_json(folder / _PLAN) if (folder / _PLAN).exists() else {}
        left = (
            f"{folder}: an interrupted conversion of {there.get('source', {}).get('path', 'another source')} left this"
        )
        if not resume:
            raise UsageError(f"{left}. Go on with --resume, or delete the folder to start again")
        differing = [_difference(key, plan[key], there.get(key)) for key in plan if plan[key] != there.get(key)]
        if differing:
            raise UsageError(
                f"{left}, and this is another conversion, from {plan['source']['path']}: {'; '.join(differing)}. "
                "Delete the folder to start again"
            )
        for name in subfolders:
            (folder / _DATASET / name).mkdir(parents=True, exist_ok=True)
        return
    with working_folder(folder) as started:
        for name in subfolders:
            (started / folder.name / _DATASET / name).mkdir(parents=True)
        write_json(started / folder.name / _PLAN, plan)
        move_folder(started / folder.name, folder)  # fails if another conversion has made it in the meantime


def _difference(key: str, now: Any, before: Any) -> str:
    texts = [json.dumps(value) for value in (now, before)]
    return f"{key} is {texts[0]}, and was {texts[1]}" if max(map(len, texts)) < _SHOWN else f"{key} is another one"


@dataclass(frozen=True)
class _WrittenFile:
    """A file of the converted data set, and the file of the release that it is made from."""

    source: Path
    target: Path
    transfer: Transfer
    label_map: Mapping[int, int] | None  # None for files whose voxels are not changed

    @property
    def nbytes(self) -> int:
        """The approximate number of bytes of the file on the disk."""
        return self.source.stat().st_size if self.transfer == "copy" or self.label_map is not None else 0

    def write(self) -> None:
        """Write the file, which is complete or does not exist."""
        packed = self.source.suffix == ".gz"
        if self.label_map is not None or packed != (self.target.suffix == ".gz"):
            content = self.source.read_bytes()
            content = gzip.decompress(content) if packed else content
            if self.label_map is not None:
                content = relabelled(content, self.label_map)
            # There is no time stamp, so that the same release gives the same bytes.
            write_bytes(self.target, gzip.compress(content, 6, mtime=0) if self.target.suffix == ".gz" else content)
        elif self.transfer == "symlink":
            self.target.symlink_to(self.source.resolve())
        elif self.transfer == "move":
            sync(self.source)
            os.replace(self.source, self.target)
        else:
            with new_file(self.target) as temporary:
                shutil.copyfile(self.source, temporary)


def relabelled(nifti: bytes, label_map: Mapping[int, int]) -> bytes:
    """Return a NIfTI file with labels replaced, as uint8; header and geometry stay the same to the last bit."""
    image = nibabel.Nifti1Image.from_bytes(nifti)
    labels = np.asanyarray(image.dataobj)
    changed = np.zeros(labels.shape, np.uint8)
    for theirs, ours in label_map.items():
        changed[labels == theirs] = ours
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    return nibabel.Nifti1Image(changed, None, header).to_bytes()


def _written(case: SourceCase, release: Release, folder: Path, transfer: Transfer) -> Iterator[_WrittenFile]:
    split = "Ts" if case.label is None else "Tr"
    for channel, image in enumerate(case.images):
        name = f"{case.name}_{channel:04d}{release.file_ending}"
        yield _WrittenFile(image, folder / f"images{split}" / name, transfer, None)
    if case.label is not None:
        unchanged = all(theirs == ours for theirs, ours in release.label_map.items())
        label_map = None if unchanged else dict(release.label_map)
        yield _WrittenFile(case.label, folder / f"labelsTr/{case.name}{release.file_ending}", transfer, label_map)


def _describe(
    folder: Path,
    name: str,
    release: Release,
    training: int,
    folds: splits.Splits | None,
    report: Mapping[str, Any],
) -> None:
    """Write the small files of a data set."""
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    generate_dataset_json(
        str(folder),
        channel_names={str(number): name for number, name in enumerate(release.channels)},
        labels=dict(release.labels),
        num_training_cases=training,
        file_ending=release.file_ending,
        regions_class_order=release.regions_class_order,
        dataset_name=name,
        reference=release.reference,
        release=release.name,
        license=release.licence,
        converted_by="nnunet-glims convert",
    )
    if folds is not None:
        write_json(folder / "splits_final.json", folds)
    write_json(folder / REPORT, report)
