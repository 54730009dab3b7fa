"""Post-process folders of predictions: find the cases, check that they belong together, write the label maps."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from nnunet_glims.errors import ProcessingError, UsageError, UserError
from nnunet_glims.files import new_folder, write_json
from nnunet_glims.geometry import times
from nnunet_glims.images import read_geometry, read_label_map, write_image
from nnunet_glims.nnunet.folders import ENDINGS, READERS, find_dataset_json, label_maps, regions_of
from nnunet_glims.postprocessing.case import apply_rules, postprocessed_label_map
from nnunet_glims.postprocessing.probabilities import Heads, check_sums, read_probabilities, shape_of
from nnunet_glims.postprocessing.rules import Rules, rules_to_json
from nnunet_glims.processes import Progress, processes, quietly
from nnunet_glims.validation import read_model

RECORD = "postprocessing.json"


class _Plans(BaseModel):
    """What plans beside predictions must say."""

    image_reader_writer: str | None = None


@dataclass(frozen=True)
class PredictedCase:
    """The files of a predicted case.

    Attributes:
        name: name of the case.
        label_map: nnU-Net's label map. The post-processed label map gets its geometry.
        probabilities: one file per model; empty where the rules need label maps only.
        others: the label maps of the other models, as far as they are there.
    """

    name: str
    label_map: Path
    probabilities: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()


def _places(folder: Path) -> list[Path]:
    """Return the folders in which nnU-Net may have written dataset.json and plans.json."""
    return [folder, *([folder.resolve().parent.parent] if folder.resolve().name == "validation" else [])]


def find_predicted_cases(folders: Sequence[Path], rules: Rules) -> tuple[list[PredictedCase], Heads | None]:
    """Return the cases, sorted by name, and what the channels of their probabilities are.

    The latter is None where the rules need label maps only.

    Raises:
        UsageError: a folder or file is missing or does not belong to the others. One message lists all problems.
        ProcessingError: files are damaged, and nothing else is wrong.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("a folder of predictions is given twice: only different models are averaged")
    if not rules.needs_probabilities and len(folders) == 1:
        files = label_maps(folders[0])
        if not files:
            raise UsageError(f"{folders[0]}: there are no label maps ({', '.join(ENDINGS)})")
        if (dataset_json := find_dataset_json(*_places(folders[0]))) is not None:
            _check_labels(rules, {label for of in regions_of(dataset_json).values() for label in of})
        return [PredictedCase(name, file) for name, file in files.items()], None
    heads = _heads(folders)
    for region in rules.regions:
        heads.channels(region.labels)
    _check_labels(rules, {label for of in heads.labels for label in of} - {0})
    cases = _with_probabilities(folders)
    problems = [problem for case in cases for problem in _problems(case, heads)]
    if problems:
        damaged_only = all(isinstance(problem, ProcessingError) for problem in problems)
        raise (ProcessingError if damaged_only else UsageError)(_listed([str(problem) for problem in problems]))
    return cases, heads


def _check_labels(rules: Rules, known: Collection[int]) -> None:
    """Raise `UsageError` for a rule about a label that the data set does not have."""
    named = [(f"regions: {rule.name}", rule.paint) for rule in rules.regions]
    named += [
        (f"components.{n}", label) for n, rule in enumerate(rules.components) for label in (rule.label, rule.becomes)
    ]
    named += [(f"holes.{n}", label) for n, rule in enumerate(rules.holes) for label in (rule.label, rule.becomes)]
    for where, label in named:
        if label and label not in known:
            labels = ", ".join(map(str, sorted(known)))
            raise UsageError(f"rules: {where}: label {label}: the data set has the labels {labels} only")


def _heads(folders: Sequence[Path]) -> Heads:
    described = [find_dataset_json(*_places(folder)) for folder in folders]
    first = described[0]
    for folder, dataset_json in zip(folders, described, strict=True):
        if dataset_json is None:
            raise UsageError(
                f"{folder}: has no dataset.json, which says what the probabilities are of: copy it from the model's folder"
            )
        assert first is not None
        for key in ("labels", "regions_class_order"):
            if dataset_json.get(key) != first.get(key):
                raise UsageError(
                    f"{folder}: its dataset.json has other {key} than {folders[0]}: only models of one data set are averaged"
                )
        for place in _places(folder):
            if (place / "plans.json").exists():
                reader = read_model(_Plans, place / "plans.json").image_reader_writer
                if reader not in READERS:
                    raise UsageError(
                        f"{place / 'plans.json'}: nnU-Net read the images with {reader}, which may turn their axes: "
                        f"this works with {' and '.join(READERS)}"
                    )
    assert first is not None
    return Heads.of_dataset(first, f"{folders[0]}: dataset.json")


def _with_probabilities(folders: Sequence[Path]) -> list[PredictedCase]:
    found = [{file.stem: file for file in folder.glob("*.npz") if not file.name.startswith(".")} for folder in folders]
    maps = label_maps(folders[0])
    if not any(found):
        raise UsageError(f"{folders[0]}: has no probabilities (*.npz): predict with --save_probabilities")
    problems = []
    for name in sorted({name for of in [*found, maps] for name in of}):
        for folder, of in zip(folders, found, strict=True):
            if name not in of:
                there = "which has its label map" if name in maps else "which another folder has"
                problems.append(
                    f"{folder}: no probabilities of case {name}, {there}: predict it with --save_probabilities"
                )
        if name not in maps:
            problems.append(f"{folders[0]}: no label map of case {name} beside its probabilities")
    if problems:
        raise UsageError(_listed(problems))
    others = [label_maps(folder) for folder in folders[1:]]
    return [
        PredictedCase(
            name,
            maps[name],
            tuple(of[name] for of in found),
            tuple(of[name] for of in others if name in of),
        )
        for name in sorted(found[0])
    ]


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"{problems[0]}. Nothing was written"
    lines = "\n".join(f"  {problem}" for problem in problems)
    return f"the predictions have {len(problems)} problems; nothing was written:\n{lines}"


def _problems(case: PredictedCase, heads: Heads) -> list[UserError]:
    """Return what is wrong with the files of a case, from their headers."""
    try:
        geometry = read_geometry(case.label_map)
        others = {other: read_geometry(other) for other in case.others}
    except ProcessingError as error:
        return [error]
    size = geometry.size
    problems: list[UserError] = [
        UsageError(f"{other}: {difference} as {case.label_map}")
        for other, its in others.items()
        if its.size == size
        and (difference := its.difference(geometry))  # another size is a problem of the probabilities
    ]
    for file in case.probabilities:
        try:
            channels, *shape = shape_of(file)
        except UserError as error:
            problems.append(error)
            continue
        if channels != len(heads.labels):
            problems.append(
                UsageError(f"{file}: has {channels} channels; dataset.json has {len(heads.labels)} regions or labels")
            )
        if tuple(shape[::-1]) != size:
            problems.append(
                UsageError(f"{file}: has {times(shape[::-1])} voxels, not {times(size)} as {case.label_map}")
            )
    return problems


def postprocess(
    folders: Sequence[Path], rules: Rules, out: Path, workers: int = 1, progress: Progress = quietly
) -> dict[str, int]:
    """Apply rules to all predicted cases of one or several models.

    Args:
        folders: folders of nnU-Net's predictions of the same cases, one per model.
        rules: the rules to apply.
        out: folder to make, with label maps of the same names and geometry. It appears when all cases are done.
        workers: number of processes.
        progress: shows how many cases are done.

    Returns:
        Name of each case -> number of voxels whose label differs from the label map of the first folder.

    Raises:
        UsageError: `out` exists, or see `find_predicted_cases`.
        ProcessingError: predictions are damaged, or the result cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out}: is there already: choose another folder, or delete it")
    cases, heads = find_predicted_cases(folders, rules)
    with new_folder(out) as unfinished:
        with processes(min(workers, len(cases))) as parallel_map:
            done = parallel_map(partial(_write, heads, rules, unfinished), cases)
            changed = dict(progress(done, "Post-processing", len(cases)))
        for name in ("dataset.json", "plans.json"):
            if (folders[0] / name).exists():
                shutil.copyfile(folders[0] / name, unfinished / name)
        record = {
            "rules": rules_to_json(rules),
            "predictions": [str(folder) for folder in folders],
            "changed_voxels": changed,
        }
        write_json(unfinished / RECORD, record)
    return changed


def _write(heads: Heads | None, rules: Rules, out: Path, case: PredictedCase) -> tuple[str, int]:
    before = read_label_map(case.label_map)
    if heads is None:
        after = before.labels.copy()
        apply_rules(after, rules)
    else:
        models = [read_probabilities(file) for file in case.probabilities]
        if heads.exclusive:
            for values, file in zip(models, case.probabilities, strict=True):
                check_sums(values, file)
        after = postprocessed_label_map(models, heads, rules)
    write_image(after, before.geometry, out / case.label_map.name)
    return case.name, int(np.count_nonzero(after != before.labels))
