"""Many cases, many jobs, large tables: the answer comes within two minutes and four gigabytes, and is right."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from benchmarks.reliability import runner
from benchmarks.reliability.campaign import Case, scene
from benchmarks.reliability.scenes import CASES, COMPARISON, DATASET, environment

TITLE = "Load"
SECONDS = 120
MEGABYTES = 4096


def _evaluated(work: Path, count: int) -> None:
    """Both evaluations of the scene with so many cases; their label maps are gone."""
    for entry in ("first", "second"):
        record, summary = (work / entry / "evaluation" / name for name in ("cases.jsonl", "summary.json"))
        lines = record.read_text().splitlines()
        with record.open("w") as file:
            for number in range(count):
                line = lines[number % len(lines)]
                case = CASES[number % len(lines)]
                file.write(line.replace(case, f"case_{number:05d}") + "\n")
        summary.write_text(json.dumps({**json.loads(summary.read_text()), "cases": count, "records": count}))


def _labelled(work: Path, count: int) -> None:
    """So many cases, each a copy of one of the scene."""
    for folder in ("truth", "first"):
        for number in range(count):
            source = work / folder / f"{CASES[number % 3]}.nii.gz"
            shutil.copyfile(source, work / folder / f"many_{number:05d}.nii.gz")
    listed = sorted(path.name.removesuffix(".nii.gz") for path in (work / "first").glob("*.nii.gz"))
    (work / "cases.txt").write_text("\n".join(listed) + "\n")


def _probabilities(work: Path, count: int) -> None:
    for entry in ("first", "second"):
        for number in range(count):
            for ending in (".nii.gz", ".npz"):
                source = work / entry / f"{CASES[number % 3]}{ending}"
                shutil.copyfile(source, work / entry / f"many_{number:05d}{ending}")


def _patients(work: Path, count: int) -> None:
    _evaluated(work, count)
    rows = "".join(f"case_{number:05d},patient_{number // 2}\n" for number in range(count))
    (work / "patients.csv").write_text("case,patient\n" + rows)


def _comparison(work: Path, entries: int, seeds: int) -> None:
    content = yaml.safe_load(COMPARISON)
    content["entries"] = [
        {**content["entries"][0], "name": f"L{number}", "training": {"epochs": number + 2}} for number in range(entries)
    ]
    content |= {"folds": [0, 1, 2, 3, 4], "seeds": list(range(seeds))}
    (work / "comparison.yaml").write_text(yaml.safe_dump(content))
    cubes = [f"cube_{number}" for number in range(4)]
    folds = [
        {"train": [name for name in cubes if name != cubes[fold % 4]], "val": [cubes[fold % 4]]} for fold in range(5)
    ]
    (work / f"preprocessed/{DATASET}/splits_final.json").write_text(json.dumps(folds))


def _release(work: Path, count: int) -> None:
    source = work / "brats/BraTS2021_00000"
    for number in range(100, 100 + count):
        name = f"BraTS2021_{number:05d}"
        (work / "brats" / name).mkdir()
        for file in source.iterdir():
            shutil.copyfile(file, work / "brats" / name / file.name.replace(source.name, name))


def _images(work: Path, count: int) -> None:
    for number in range(count):
        for channel in range(2):
            shutil.copyfile(
                work / f"images/case_a_{channel:04d}.nii.gz", work / f"images/many_{number:04d}_{channel:04d}.nii.gz"
            )


def _splits(work: Path, count: int) -> None:
    names = [f"case_{number:05d}" for number in range(count)]
    folds = [{"train": [n for i, n in enumerate(names) if i % 5 != f], "val": names[f::5]} for f in range(5)]
    (work / f"preprocessed/{DATASET}/splits_final.json").write_text(json.dumps(folds))


def _lines(path: str, least: int, work: Path, printed: str) -> bool:
    return len((work / path).read_text().splitlines()) >= least


def _entries(pattern: str, count: int, work: Path, printed: str) -> bool:
    return len(list(work.glob(pattern))) == count


def _says(pattern: str, work: Path, printed: str) -> bool:
    return re.search(pattern, printed) is not None


LOADS: tuple[tuple[str, str, str, Callable[[Path], object], Callable[[Path, str], bool], tuple[int, ...]], ...] = (
    # what, scene, command line, preparation, what must hold afterwards, exit codes
    (
        "leaderboard of 10,000 cases",
        "predictions",
        "leaderboard board.yaml -o board",
        partial(_evaluated, count=10_000),
        partial(_entries, "board/*.html", 1),
        (0,),
    ),
    (
        "confusion matrices of 10,000 cases",
        "predictions",
        "confusion board.yaml -o out",
        partial(_evaluated, count=10_000),
        partial(_says, "10000 cases"),
        (0,),
    ),
    (
        "leaderboard with 10,000 rows of patients",
        "predictions",
        "leaderboard board.yaml -o board --patients patients.csv",
        partial(_patients, count=10_000),
        partial(_entries, "board/*.html", 1),
        (0,),
    ),
    (
        "evaluation of 2,000 cases",
        "predictions",
        "evaluate truth first -o out --workers 1",
        partial(_labelled, count=2000),
        partial(_lines, "out/metrics.csv", 2 * 2003 + 1),
        (0,),
    ),
    (
        "submission of 2,000 cases",
        "predictions",
        "submit first out.zip --challenge brats2021 --cases cases.txt",
        partial(_labelled, count=2000),
        partial(_says, "2003 cases"),
        (0,),
    ),
    (
        "post-processing of 1,000 cases",
        "predictions",
        "postprocess first second -o out --preset rules.json --workers 1",
        partial(_probabilities, count=1000),
        partial(_entries, "out/*.nii.gz", 1003),
        (0,),
    ),
    (
        "plan of a comparison with 10,000 trainings",
        "planned",
        "compare plan comparison.yaml",
        partial(_comparison, entries=40, seeds=50),
        partial(_says, "10000"),
        (0,),
    ),
    (
        "status of a comparison with 10,000 trainings",
        "planned",
        "compare status comparison.yaml",
        partial(_comparison, entries=40, seeds=50),
        partial(_says, r"\b[12]\d{4}\b"),
        (0,),
    ),
    (
        "conversion of 400 cases",
        "releases",
        "convert brats brats -d 137 --workers 1",
        partial(_release, count=400),
        partial(_entries, "raw/Dataset137_BraTS/labelsTr/*.nii.gz", 403),
        (0,),
    ),
    (
        "prediction of 300 cases",
        "model",
        "predict-onnx exported images -o out --disable_tta --threads 1",
        partial(_images, count=300),
        partial(_entries, "out/*.nii.gz", 301),
        (0,),
    ),
    (
        "doctor with splits of 10,000 cases that are not there",
        "planned",
        "doctor -d 777 -tr nnUNetTrainerLATUPNet",
        partial(_splits, count=10_000),
        partial(_says, "split"),
        (0, 1),
    ),
)


def load(
    scene_name: str,
    line: str,
    prepare: Callable[[Path], object],
    holds: Callable[[Path, str], bool],
    codes: tuple[int, ...],
    folder: Path,
) -> str:
    """Run a command on much input and look at time, memory and result."""
    work = scene(scene_name, folder)
    prepare(work)
    outcome = runner.run(line.split(), work, SECONDS, **environment(work))
    if outcome.code not in codes:
        return f"ended with {outcome.code} after {outcome.seconds:.0f} s: {outcome.last_line[:300]}"
    if outcome.megabytes > MEGABYTES:
        return f"held {outcome.megabytes:.0f} MB"
    return (
        f"fine: {outcome.seconds:.0f} s, {outcome.megabytes:.0f} MB" if holds(work, outcome.text) else "another result"
    )


def cases(seed: int) -> Sequence[Case]:
    """All loads; the seed changes nothing."""
    return [Case(what, line, partial(load, scene_name, line, *rest)) for what, scene_name, line, *rest in LOADS]
