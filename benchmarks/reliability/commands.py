"""The commands that the campaigns run, the files that each of them reads, and what counts as its result."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.scenes import DATASET, MODEL, TRAINED

PREPROCESSED = f"preprocessed/{DATASET}"
RAW = f"raw/{DATASET}"
CONVERTED = "raw/Dataset137_BraTS"
VOLATILE = {
    *(
        "base_sha256",  # of the base plans, which may differ in what the new plans do not take from them
        "created",
        "date",
        "seconds",
        "versions",
        "version",
        "written",
        "machine",
        "command",
        "mtime_ns",
        "mtime",
        "time",
    ),
    *("started", "ended", "hostname", "host", "pid", "paths", "source", "fingerprint", "sha256", "size"),
}
"""Keys of JSON files whose values differ from run to run, or repeat which files were read."""


@dataclass(frozen=True)
class Command:
    """A command line in a scene.

    Attributes:
        name: name of the command in tables.
        scene: name of its scene.
        line: its arguments; paths are relative to the scene.
        reads: the files that it reads.
        result: patterns of the files that it writes; empty where what it prints is the result.
        writes: the folder or file that appears where the command succeeds; empty where nothing is written.
        is_slow: whether it takes more than about a second.
    """

    name: str
    scene: str
    line: str
    reads: tuple[str, ...]
    result: tuple[str, ...] = ()
    writes: str = ""
    is_slow: bool = False

    @property
    def arguments(self) -> list[str]:
        """The arguments as a list."""
        return self.line.split()


def _labelled(ending: str) -> Command:
    """`evaluate` of label maps with this ending."""
    kept = ("truth/case_a", "predicted/case_b")
    reads = tuple(
        f"{ending}/{name}.{suffix}" for name in kept for suffix in ([ending, "raw"] if ending == "mhd" else [ending])
    )
    line = f"evaluate {ending}/truth {ending}/predicted --regions regions.json -o out --workers 1"
    return Command(f"evaluate .{ending}", "predictions", line, reads, ("out/metrics.csv",), "out")


_VALIDATED = f"{MODEL}/fold_0/validation/case_a"
_TRAIN = "nnUNetv2_train 777 3d_fullres 0 -tr nnUNetTrainerLATUPNet -device cpu"

COMMANDS = (
    Command(
        "evaluate",
        "predictions",
        "evaluate truth first -o out --workers 1",
        ("truth/case_a.nii.gz", "first/case_b.nii.gz", "first/dataset.json"),
        ("out/metrics.csv",),
        "out",
    ),
    Command(
        "evaluate --regions",
        "predictions",
        "evaluate truth first --regions regions.json -o out --workers 1",
        ("regions.json",),
        ("out/metrics.csv",),
        "out",
    ),
    Command(
        "evaluate again",
        "predictions",
        "evaluate truth first --workers 1",
        ("first/evaluation/cases.jsonl", "first/evaluation/summary.json", "first/evaluation/metrics.csv"),
        ("first/evaluation/metrics.csv",),
    ),
    *(_labelled(ending) for ending in ("nii", "mha", "mhd", "nrrd")),
    Command(
        "evaluate --model",
        "model",
        f"evaluate --model {MODEL} -o out --workers 1",
        (
            *(f"{MODEL}/{name}" for name in ("plans.json", "dataset.json")),
            *(f"{PREPROCESSED}/{name}" for name in ("splits_final.json", "gt_segmentations/case_a.nii.gz")),
            f"{_VALIDATED}.nii.gz",
        ),
        ("out/metrics.csv",),
        "out",
    ),
    Command(
        "leaderboard",
        "predictions",
        "leaderboard board.yaml -o board --patients patients.csv --cases 2",
        (
            *("board.yaml", "patients.csv", "first/evaluation/cases.jsonl", "first/evaluation/summary.json"),
            *("truth/case_a.nii.gz", "first/case_a.nii.gz", f"{RAW}/imagesTs/case_a_0000.nii.gz"),
        ),
        ("board/*.csv",),
        "board",
        True,
    ),
    Command(
        "confusion",
        "predictions",
        "confusion board.yaml -o matrices",
        ("first/evaluation/cases.jsonl", "first/evaluation/summary.json"),
        ("matrices/*.csv",),
        "matrices",
        True,
    ),
    Command(
        "postprocess",
        "predictions",
        "postprocess first second -o averaged --preset rules.json --workers 1",
        ("first/case_a.npz", "second/case_b.nii.gz", "first/dataset.json", "first/plans.json", "rules.json"),
        ("averaged/*.nii.gz",),
        "averaged",
    ),
    Command(
        "postprocess-fit",
        "model",
        f"postprocess-fit {MODEL} -o fitted.json --workers 1",
        (
            *(f"{_VALIDATED}.nii.gz", f"{_VALIDATED}.npz", f"{MODEL}/plans.json", f"{MODEL}/dataset.json"),
            f"{PREPROCESSED}/gt_segmentations/case_a.nii.gz",
        ),
        ("fitted.json",),
        "fitted.json",
    ),
    Command(
        "submit",
        "predictions",
        f"submit first packed.zip --challenge brats2021 --dataset {RAW} --cases cases.txt",
        ("first/case_a.nii.gz", "cases.txt", f"{RAW}/dataset.json", f"{RAW}/imagesTs/case_a_0000.nii.gz"),
        ("packed.zip",),
        "packed.zip",
    ),
    Command(
        "convert a folder",
        "releases",
        "convert brats brats -d 137 --workers 1 --split split.json",
        (
            "brats/BraTS2021_00000/BraTS2021_00000_t1.nii.gz",
            "brats/BraTS2021_00001/BraTS2021_00001_seg.nii.gz",
            "split.json",
        ),
        (f"{CONVERTED}/**/*",),
        CONVERTED,
    ),
    *(
        Command(
            f"convert {name.removeprefix('brats')}",
            "releases",
            f"convert brats {name} -d 137 --workers 1",
            (name,),
            (f"{CONVERTED}/**/*",),
            CONVERTED,
        )
        for name in ("brats.tar", "brats.zip", "brats.tar.gz")
    ),
    Command(
        "convert btcv",
        "releases",
        "convert btcv btcv -d 218 --workers 1",
        ("btcv/RawData/Training/img/img0001.nii.gz", "btcv/RawData/Training/label/label0002.nii.gz"),
        ("raw/Dataset218_BTCV/**/*",),
        "raw/Dataset218_BTCV",
    ),
    Command(
        "predict-onnx",
        "model",
        "predict-onnx exported images -o predicted --disable_tta --threads 1",
        ("exported/model.json", "exported/fold_0.onnx", "images/case_a_0000.nii.gz", "images/case_a_0001.nii.gz"),
        ("predicted/*.nii.gz",),
        "predicted",
    ),
    Command(
        "explain",
        "model",
        f"explain {MODEL} images -o explained --truth truth -device cpu",
        (
            *(f"{MODEL}/{name}" for name in ("fold_0/checkpoint_final.pth", "plans.json", "dataset.json")),
            *("images/case_a_0000.nii.gz", "truth/case_a.nii.gz"),
        ),
        ("explained/**/*.nii.gz",),
        "explained",
        True,
    ),
    Command(
        "export",
        "model",
        f"export {MODEL} out --folds 0 --format torchscript",
        tuple(f"{MODEL}/{name}" for name in ("fold_0/checkpoint_final.pth", "plans.json", "dataset.json")),
        ("out/model.json",),
        "out",
        True,
    ),
    Command("import-released", "released", "import-released model.pt new", ("model.pt",), ("new/**/*",), "new", True),
    Command(
        "plans apply",
        "planned",
        "plans apply override.json -d 777",
        ("override.json", f"{PREPROCESSED}/nnUNetPlans.json", f"{PREPROCESSED}/dataset.json"),
        (f"{PREPROCESSED}/nnUNetPlans_override.json",),
        f"{PREPROCESSED}/nnUNetPlans_override.json",
    ),
    Command(
        "doctor",
        "planned",
        "doctor -d 777 -tr nnUNetTrainerLATUPNet --json",
        tuple(f"{PREPROCESSED}/{name}" for name in ("nnUNetPlans.json", "dataset.json", "splits_final.json")),
    ),
    Command(
        "compare plan",
        "planned",
        "compare plan comparison.yaml",
        ("comparison.yaml", "override.json"),
    ),
    Command(
        "training, continued",
        "stopped",
        f"{_TRAIN} --c",
        (
            *(f"{TRAINED}/fold_0/{name}" for name in ("checkpoint_latest.pth", "checkpoint_previous.pth")),
            *(f"{PREPROCESSED}/{name}" for name in ("nnUNetPlans.json", "dataset.json", "splits_final.json")),
        ),
        (f"{TRAINED}/fold_0/checkpoint_final.pth",),
        f"{TRAINED}/fold_0/checkpoint_final.pth",
        True,
    ),
)


def named(name: str) -> Command:
    """Return the command of this name."""
    return next(command for command in COMMANDS if command.name == name)


def result_of(command: Command, folder: Path, printed: str = "") -> dict[str, str]:
    """Return what a command has made: file -> a text or sum of its content, without what differs from run to run."""
    if not command.result:
        return {"": printed.replace(str(folder), ".")}
    files = sorted({file for pattern in command.result for file in folder.glob(pattern) if file.is_file()})
    return {file.relative_to(folder).as_posix(): _content(file, folder) for file in files}


def _content(file: Path, folder: Path) -> str:
    content = file.read_bytes()
    if file.name.endswith(".gz"):
        content = gzip.decompress(content)
    elif file.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            members = {name: gzip.decompress(packed.read(name)) for name in packed.namelist()}
        content = repr({name: hashlib.sha256(member).hexdigest() for name, member in members.items()}).encode()
    elif file.suffix == ".json":
        return json.dumps(_without_volatile(json.loads(content)), sort_keys=True).replace(str(folder), ".")
    elif file.suffix == ".pth":
        return _epochs_of(file)
    elif file.suffix in (".csv", ".txt"):
        return content.decode().replace(str(folder), ".")
    return hashlib.sha256(content).hexdigest()


def _without_volatile(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_volatile(value) for key, value in content.items() if key not in VOLATILE}
    return [_without_volatile(value) for value in content] if isinstance(content, list) else content


def _epochs_of(checkpoint: Path) -> str:
    """A trained checkpoint in a few words: its weights are random, but finite, and its log has every epoch."""
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    finite = all(bool(torch.isfinite(value).all()) for value in content["network_weights"].values())
    losses = np.asarray(content["logging"]["train_losses"] if content["logging"] else [], float)
    return (
        f"epoch {content['current_epoch']}, {len(losses)} losses, finite: {finite and bool(np.isfinite(losses).all())}"
    )
