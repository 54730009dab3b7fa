"""Inputs that cannot work: files of another kind, images that are no label maps, options, overrides, comparisons.

Each is refused in time, with exit code 2 for what was typed or written and 1 or 2 for data, by a sentence that names what is
wrong. A traceback or the class of an error in place of a sentence counts as an unclear message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

from benchmarks.reliability import runner
from benchmarks.reliability.bad_options import COMPARISONS, OPTIONS, OVERRIDES
from benchmarks.reliability.campaign import Case, scene
from benchmarks.reliability.commands import Command, named
from benchmarks.reliability.scenes import DATASET, MODEL, environment

TITLE = "Bad inputs"

CONTENTS: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda content: b"",
    "null": lambda content: b"null",
    "an empty list": lambda content: b"[]",
    "a list of null": lambda content: b"[null, null]",
    "a text": lambda content: b'"text"',
    "a number": lambda content: b"5",
    "an empty object": lambda content: b"{}",
    "the first half": lambda content: content[: len(content) // 2],
    "random bytes": lambda content: np.random.default_rng(0).bytes(max(400, len(content) // 10)),
    "zeros": lambda content: bytes(len(content)),
    "UTF-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "brackets 100,000 deep": lambda content: b"[" * 100_000 + b"]" * 100_000,
    "a web page": lambda content: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "a folder": lambda content: None,
}
FILES: tuple[tuple[str, str], ...] = (
    ("evaluate", "first/dataset.json"),
    ("evaluate", "truth/case_a.nii.gz"),
    ("evaluate --regions", "regions.json"),
    ("evaluate --model", f"{MODEL}/plans.json"),
    ("evaluate --model", f"preprocessed/{DATASET}/splits_final.json"),
    ("leaderboard", "board.yaml"),
    ("leaderboard", "patients.csv"),
    ("leaderboard", "first/evaluation/summary.json"),
    ("leaderboard", "first/evaluation/cases.jsonl"),
    ("postprocess", "rules.json"),
    ("postprocess", "first/dataset.json"),
    ("postprocess", "first/case_a.npz"),
    ("submit", "cases.txt"),
    ("convert a folder", "split.json"),
    ("convert .zip", "brats.zip"),
    ("convert .tar", "brats.tar"),
    ("predict-onnx", "exported/model.json"),
    ("predict-onnx", "exported/fold_0.onnx"),
    ("explain", f"{MODEL}/dataset.json"),
    ("explain", f"{MODEL}/fold_0/checkpoint_final.pth"),
    ("export", f"{MODEL}/plans.json"),
    ("import-released", "model.pt"),
    ("plans apply", "override.json"),
    ("plans apply", f"preprocessed/{DATASET}/nnUNetPlans.json"),
    ("plans apply", f"preprocessed/{DATASET}/dataset.json"),
    ("compare plan", "comparison.yaml"),
)
ALLOWED = {("cases.txt", "UTF-16"), ("patients.csv", "UTF-16")}
"""What a command may understand after all: a byte order mark says which encoding a text has."""

OPTIONAL = (
    "truth/case_a.nii.gz",
    "first/dataset.json",
    f"preprocessed/{DATASET}/splits_final.json",
    f"preprocessed/{DATASET}/dataset.json",
)
"""Files whose absence is an input of its own: a prediction without truth is listed, for example."""


def _nifti(voxels: np.ndarray, affine: np.ndarray | None = None) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0]) if affine is None else affine)


def _with_rows(voxels: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    """An image whose header has rows of an affine that nibabel itself would not write."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_sform(affine, 1)
    return nibabel.Nifti1Image(voxels, None, header)


def _with(voxels: np.ndarray, value: float) -> np.ndarray:
    changed = voxels.astype(np.float32)
    changed[tuple(length // 2 for length in changed.shape)] = value
    return changed


def _in_colour(voxels: np.ndarray) -> np.ndarray:
    colours = np.zeros(voxels.shape, [(name, np.uint8) for name in "RGB"])
    colours["R"] = voxels.astype(np.uint8)
    return colours


IMAGES: dict[str, Callable[[np.ndarray], nibabel.Nifti1Image]] = {
    "NaN": lambda voxels: _nifti(_with(voxels, np.nan)),
    "infinity": lambda voxels: _nifti(_with(voxels, np.inf)),
    "2D": lambda voxels: _nifti(voxels[:, :, 3]),
    "4D": lambda voxels: _nifti(np.stack([voxels] * 2, 3)),
    "no voxels": lambda voxels: _nifti(voxels[:0]),
    "complex": lambda voxels: _nifti(voxels.astype(np.complex64)),
    "colours": lambda voxels: _nifti(_in_colour(voxels)),
    "another shape": lambda voxels: _nifti(voxels[1:]),
    "another place": lambda voxels: _nifti(
        voxels, np.array([[-1, 0, 0, 50], [0, -1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    ),
    "another spacing": lambda voxels: _nifti(voxels, np.diag([-3.0, -1.0, 2.0, 1.0])),
    "no axis": lambda voxels: _with_rows(voxels, np.diag([0.0, -1.0, 2.0, 1.0])),
}
LABELS: dict[str, Callable[[np.ndarray], nibabel.Nifti1Image]] = {
    "a label of 2.5": lambda voxels: _nifti(_with(voxels, 2.5)),
    "a label of 1.00002": lambda voxels: _nifti(_with(voxels, 1.00002)),
    "a label of -1": lambda voxels: _nifti(_with(voxels, -1).astype(np.int16)),
    "a label of 77": lambda voxels: _nifti(_with(voxels, 77).astype(np.uint8)),
    "a label of 1e30": lambda voxels: _nifti(_with(voxels, 1e30)),
}
PICTURES: tuple[tuple[str, str, bool], ...] = (
    # command, file, whether it is a label map
    ("evaluate", "truth/case_a.nii.gz", True),
    ("evaluate", "first/case_a.nii.gz", True),
    ("postprocess", "first/case_a.nii.gz", True),
    ("postprocess-fit", f"preprocessed/{DATASET}/gt_segmentations/case_a.nii.gz", True),
    ("submit", "first/case_a.nii.gz", True),
    ("convert a folder", "brats/BraTS2021_00001/BraTS2021_00001_seg.nii.gz", True),
    ("convert a folder", "brats/BraTS2021_00001/BraTS2021_00001_t1.nii.gz", False),
    ("predict-onnx", "images/case_a_0000.nii.gz", False),
    ("explain", "images/case_a_0000.nii.gz", False),
)


def _judged(outcome: runner.Outcome, codes: tuple[int, ...], pattern: str) -> str:
    if outcome.code is None:
        return f"no answer in {outcome.seconds:.0f} s, {outcome.megabytes:.0f} MB"
    if outcome.code < 0:
        return f"ended by signal {-outcome.code}"
    if outcome.code == 0:
        return "accepted"
    if outcome.is_unexplained:
        return f"unclear: {outcome.last_line[:300]}"
    if outcome.code not in codes:
        return f"unclear, exit code {outcome.code}: {outcome.last_line[:300]}"
    return "" if re.search(pattern, outcome.text) else f"unclear, does not name {pattern}: {outcome.last_line[:300]}"


def with_content(command: Command, file: str, kind: str, folder: Path) -> str:
    """A file has a content of another kind."""
    work = scene(command.scene, folder)
    content = CONTENTS[kind]((work / file).read_bytes())
    (work / file).unlink()
    if content is None:
        (work / file).mkdir()
    else:
        (work / file).write_bytes(content)
    outcome = runner.run(command.arguments, work, **environment(work))
    if outcome.code == 0 and (Path(file).name, kind) in ALLOWED:
        return ""
    name = Path(file).name
    return _judged(outcome, (1, 2), "|".join(map(re.escape, (name, name.split(".")[0], str(Path(file).parent)))))


def with_image(command: Command, file: str, kind: str, folder: Path) -> str:
    """An image is written by nibabel, of a kind that the command cannot take."""
    work = scene(command.scene, folder)
    voxels = np.asanyarray(nibabel.load(work / file).dataobj)
    image = {**IMAGES, **LABELS}[kind](voxels)
    (work / file).unlink()
    image.to_filename(work / file)
    outcome = runner.run(command.arguments, work, **environment(work))
    return _judged(outcome, (1, 2), re.escape(Path(file).name.split(".")[0].removesuffix("_0000").split("_seg")[0]))


def with_options(scene_name: str, line: str, pattern: str, folder: Path) -> str:
    """A command line cannot work."""
    work = scene(scene_name, folder)
    outcome = runner.run(line.split(), work, **environment(work))
    return _judged(outcome, (2,), pattern)


def with_override(key: str, value: Any, folder: Path) -> str:
    """A plans override has a value that cannot be trained."""
    work = scene("planned", folder)
    path = work / "override.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    outcome = runner.run(named("plans apply").arguments, work, **environment(work))
    inner = "|".join(value) if isinstance(value, dict) else re.escape(str(value))
    return _judged(outcome, (2,), rf"override\.json[\s\S]*({key}|{inner})")


def with_comparison(key: str, value: Any, pattern: str, folder: Path) -> str:
    """A comparison asks for what cannot be compared."""
    work = scene("planned", folder)
    path = work / "comparison.yaml"
    content = yaml.safe_load(path.read_text())
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    holder = content
    for part in parents:
        holder = holder[part]
    holder[last] = value
    path.write_text(yaml.safe_dump(content))
    outcome = runner.run(["compare", "plan", "comparison.yaml"], work, **environment(work))
    return _judged(outcome, (2,), pattern)


def without_variable(name: str, line: str, value: str | None, folder: Path) -> str:
    """One of nnU-Net's variables is missing or points nowhere."""
    work = scene("planned", folder)
    variables = environment(work)
    variables[name] = value or ""
    outcome = runner.run(line.split(), work, **variables)
    return _judged(outcome, (2,), re.escape(name) if value is None else re.escape(value))


def without_file(command: Command, file: str, folder: Path) -> str:
    """A file is missing."""
    work = scene(command.scene, folder)
    (work / file).unlink()
    outcome = runner.run(command.arguments, work, **environment(work))
    name = Path(file).name
    return _judged(
        outcome,
        (1, 2),
        "|".join(map(re.escape, (name, name.split(".")[0].removesuffix("_seg"), str(Path(file).parent)))),
    )


def cases(seed: int) -> Sequence[Case]:
    """All bad inputs; the seed changes nothing."""
    found = []
    for name, file in FILES:
        for kind in CONTENTS:
            found.append(Case(f"{Path(file).name}", f"{name}: {kind}", partial(with_content, named(name), file, kind)))
    for name, file, labelled in PICTURES:
        for kind in (*IMAGES, *(LABELS if labelled else ())):
            attempt = partial(with_image, named(name), file, kind)
            found.append(Case("images", f"{name}: {file}: {kind}", attempt))
    for scene_name, line, pattern in OPTIONS:
        found.append(Case("options", line, partial(with_options, scene_name, line, pattern)))
    for key, value in OVERRIDES:
        found.append(Case("overrides", f"{key}: {str(value)[:40]}", partial(with_override, key, value)))
    for key, value, pattern in COMPARISONS:
        found.append(Case("comparisons", f"{key}: {value}", partial(with_comparison, key, value, pattern)))
    for line in ("plans apply override.json -d 777", "plans auto -d 777 --network glims --vram 8"):
        found.append(Case("variables", f"{line}, unset", partial(without_variable, "nnUNet_preprocessed", line, None)))
        attempt = partial(without_variable, "nnUNet_preprocessed", line, "/nowhere/at/all")
        found.append(Case("variables", f"{line}, nowhere", attempt))
    for name, file in FILES:
        if file not in OPTIONAL:
            found.append(Case("missing files", f"{name}: {file}", partial(without_file, named(name), file)))
    return found
