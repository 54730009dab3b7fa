"""Convert a release to nnU-Net's raw layout. All files are checked before any is written; a crash leaves no partial file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_glims.datasets import splits
from nnunet_glims.datasets.archive import Source, opened
from nnunet_glims.datasets.cases import Problem, Release, SourceCase, problems_of_names, readable
from nnunet_glims.datasets.checks import check_case
from nnunet_glims.datasets.destination import Destination
from nnunet_glims.datasets.unpacking import is_archive
from nnunet_glims.datasets.writing import FileToWrite, Transfer, files_to_write
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.files import check_free_space, move_folder, read_json, working_folder, write_json
from nnunet_glims.processes import Progress, processes, quietly

REPORT = "conversion_report.json"
_PLAN = "conversion_plan.json"
_DATASET = "dataset"
_VERSION = 2
"""Raised when the same release is converted to other files, so that a conversion by an older version is not resumed."""
_SHOWN = 80
"""Characters of the longest value that an error message shows."""


class BadRelease(ProcessingError):
    """A release with problems, all of which the message lists."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(
            f"the release has {len(problems)} problem{'s' if len(problems) != 1 else ''}; nothing was written:\n{lines}\n"
            "Repair or download these files again, or convert the other cases with --skip-bad"
        )


def convert_source(
    path: Path,
    read: Callable[[Sequence[Path]], Release],
    destination: Destination,
    *,
    link: bool = False,
    own_splits: splits.OwnSplits | None = None,
    partial_split: bool = False,
    workers: int = 1,
    skip_bad: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    progress: Progress = quietly,
) -> dict[str, Any]:
    """Open a folder or archive, sort its files into cases, and convert them while no other process converts to this number.

    Args:
        path: a folder, or a zip or tar archive.
        read: function of the data set's module that sorts files into cases.
        destination: folder and name of the converted data set.
        link: whether to link to files that need no change, where the file system has links, instead of copying them.
        own_splits, partial_split, workers, skip_bad, progress: see `convert`.
        tell: takes what was found, as a sentence.

    Returns:
        The content of conversion_report.json.

    Raises:
        UsageError: as for `convert`, `archive.opened` and `Destination.held`; or an archive is to be linked to.
        ProcessingError: as for these.
    """
    packed = is_archive(path)
    if packed and link:
        raise UsageError(f"{path}: there is nothing to link to in an archive: unpack it first, or leave out --link")
    with destination.held(), opened(path, destination.unpacked) as source:
        release = read(source.files)
        labelled = sum(case.label is not None for case in release.cases)
        tell(f"{release.name}: {len(release.cases)} cases, {labelled} of them with a segmentation, in {path}")
        links = link and _links_work(destination)
        if link and not links:
            tell(f"{destination.raw}: this disk has no symbolic links: files are copied")
        return convert(
            release,
            source,
            destination,
            transfer="move" if packed else "symlink" if links else "copy",
            own_splits=own_splits,
            partial_split=partial_split,
            workers=workers,
            skip_bad=skip_bad,
            progress=progress,
        )


def convert(
    release: Release,
    source: Source,
    destination: Destination,
    *,
    transfer: Transfer = "copy",
    own_splits: splits.OwnSplits | None = None,
    partial_split: bool = False,
    workers: int = 1,
    skip_bad: bool = False,
    progress: Progress = quietly,
) -> dict[str, Any]:
    """Check a release, then write it to `destination.folder`.

    Args:
        release: the release, as the data set's module returned it.
        source: the files of the release. The report names files relative to its folder.
        destination: folder and name of the converted data set, which this process holds (`Destination.held`). What an
            interrupted conversion of the same release left there is completed.
        transfer: how files that need no change are transferred; "move" is for files that were unpacked for this conversion.
        own_splits: the user's splits; None takes those of the release or, if a patient has several cases, folds by patient.
            Otherwise nnU-Net draws its own folds.
        partial_split: whether cases of the release's published split may be missing.
        workers: number of processes.
        skip_bad: whether to leave cases with problems out instead of refusing the release.
        progress: shows how many files are done.

    Returns:
        The content of conversion_report.json.

    Raises:
        BadRelease: the release has problems, and `skip_bad` is not set.
        UsageError: the split does not fit the cases, or there is an unfinished conversion of something else.
        ProcessingError: the disk is full, or a process was killed.
    """
    labelled = [case for case in release.cases if case.label is not None]
    _splits(release, labelled, own_splits, partial_split)  # before the files are read, which may take hours
    with processes(workers) as parallel_map:
        check = partial(check_case, allowed_labels=tuple(release.label_map))
        found = progress(parallel_map(check, release.cases), "Checking", len(release.cases))
        problems = [*release.problems, *problems_of_names([case.name for case in release.cases])]
        problems = [_inside(source, problem) for problem in (*problems, *(one for of_case in found for one in of_case))]
        if problems and not skip_bad:
            raise BadRelease(problems)
        bad = {problem.case for problem in problems}
        cases = [case for case in release.cases if case.name not in bad]
        training = [case for case in cases if case.label is not None]
        if not training:
            raise UsageError("no case with a segmentation is left to train on")
        folds = _splits(release, training, own_splits, partial_split)
        report = {
            "release": release.name,
            "published_training_cases": release.training_cases,
            "training_cases": [case.name for case in training],
            "test_cases": [case.name for case in cases if case.label is None],
            "skipped": [
                {"case": readable(p.case), "file": readable(p.file), "problem": readable(p.message)} for p in problems
            ],
            "unused_files": [readable(file.relative_to(source.folder).as_posix()) for file in release.unused],
            "label_in_release": {str(ours): theirs for theirs, ours in sorted(release.label_map.items(), reverse=True)},
            "patients": {case.name: case.patient for case in cases},
            "source_files": {
                case.name: [readable(file.relative_to(source.folder).as_posix()) for file in case.files]
                for case in cases
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
        )
        written = destination.unfinished / _DATASET
        files = [file for case in cases for file in files_to_write(case, release, written, transfer)]
        missing = [file for file in files if not file.target.exists() and not file.target.is_symlink()]
        check_free_space(sum(file.nbytes for file in missing), written, f"for {destination.dataset}")
        for _ in progress(parallel_map(FileToWrite.write, missing), "Writing", len(missing)):
            pass
        missing = [file for file in files if not file.target.exists()]
        if missing:
            raise ProcessingError(f"{missing[0].target}: this file is not there any more: another process removed it")
    _describe(written, destination.name, release, len(training), folds, report)
    move_folder(written, destination.folder)
    shutil.rmtree(destination.unfinished, ignore_errors=True)
    return report


def _inside(source: Source, problem: Problem) -> Problem:
    """Return a problem with files named by their path inside the source, because an archive's folder is removed."""
    folder = f"{source.folder}{os.sep}"
    return replace(problem, file=problem.file.replace(folder, ""), message=problem.message.replace(folder, ""))


def _splits(
    release: Release, training: Sequence[SourceCase], own_splits: splits.OwnSplits | None, partial_split: bool
) -> splits.Splits | None:
    names = [case.name for case in training]
    if own_splits is not None:
        return own_splits.of(names)
    if release.splits is not None:
        return splits.published(release.splits, names, partial_split)
    patient_of = {case.name: case.patient for case in training}
    patients = set(patient_of.values())
    if len(patients) in (1, len(names)):
        return None
    return splits.by_patient(patient_of)


def _start_or_resume(destination: Destination, plan: Mapping[str, Any]) -> None:
    """Make the unfinished folder, or check that the existing one belongs to the same conversion."""
    folder = destination.unfinished
    subfolders = ("imagesTr", "labelsTr", *(("imagesTs",) if plan["test_cases"] else ()))
    if not folder.exists():
        with working_folder(folder) as started:
            (started / folder.name / _DATASET).mkdir(parents=True)
            write_json(started / folder.name / _PLAN, plan)
            move_folder(started / folder.name, folder)
    before = _plan_in(folder)
    differing = [_difference(key, plan[key], before.get(key)) for key in plan if plan[key] != before.get(key)]
    if differing:
        raise UsageError(
            f"{folder}: an interrupted conversion of {before.get('source', {}).get('path', 'another source')} left this, and "
            f"this is another conversion, from {plan['source']['path']}: {'; '.join(differing)}. Repeat the command of the "
            "interrupted one to complete it, or delete the folder to start again"
        )
    for name in subfolders:
        (folder / _DATASET / name).mkdir(parents=True, exist_ok=True)
        for left in (folder / _DATASET / name).glob(".*"):  # working folders of a killed process
            shutil.rmtree(left, ignore_errors=True)


def _plan_in(folder: Path) -> dict[str, Any]:
    """Return the plan of an interrupted conversion; an empty one where the file is missing or damaged."""
    try:
        plan = read_json(folder / _PLAN)
    except UsageError:
        return {}
    return plan if isinstance(plan, dict) and isinstance(plan.get("source"), dict) else {}


def _difference(key: str, now: Any, before: Any) -> str:
    texts = [json.dumps(value) for value in (now, before)]
    return f"{key} is {texts[0]}, and was {texts[1]}" if max(map(len, texts)) < _SHOWN else f"{key} is another one"


def _links_work(destination: Destination) -> bool:
    """Return whether the destination's file system has symbolic links, which exFAT and many network drives do not."""
    with working_folder(destination.unfinished) as probe:
        try:
            (probe / "link").symlink_to(probe)
        except OSError:
            return False
    return True


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
