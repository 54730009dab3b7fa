"""The demo: stock nnU-Net commands from raw data to predictions of unseen cases, for two networks, and a report."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nnunet_glims.demo.phantom import write_raw_dataset
from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.protocol import PRESETS
from nnunet_glims.evaluation.regions import of_dataset, short
from nnunet_glims.evaluation.results import Settings, evaluate, read_results
from nnunet_glims.files import read_json, write_text
from nnunet_glims.networks import network_named
from nnunet_glims.nnunet.folders import of_folders
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.nnunet.plans.override import apply_override
from nnunet_glims.processes import available_cores, find_program
from nnunet_glims.report.board import make_board
from nnunet_glims.report.cases import telling_cases
from nnunet_glims.report.drawing import listed
from nnunet_glims.report.entries import Entry
from nnunet_glims.report.page import render

OVERRIDES = {"GLIMS": "cpu_demo", "LATUPNet": "latupnet_cpu_demo"}
"""Network -> plans override."""
CONFIGURATION = "3d_fullres"
SHOWN_CASES = 2
PREDICTED = "predicted"
"""A file that says that all cases were predicted."""


@dataclass(frozen=True)
class Workspace:
    """The folders of one demo. A second run in the same folder goes on where the first one ended."""

    folder: Path
    raw: Path
    """The raw data set, in nnU-Net's layout."""
    device: str

    @property
    def dataset(self) -> str:
        return self.raw.name

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / self.dataset

    def model(self, trainer: str, plans_name: str) -> Path:
        """The folder of a trained model."""
        return self.folder / "nnUNet_results" / self.dataset / f"{trainer}__{plans_name}__{CONFIGURATION}"

    @property
    def workers(self) -> str:
        """Processes for one of nnU-Net's jobs; starting one takes as long as a case of the demo."""
        return str(max(1, min(4, available_cores() // 2)))

    def environment(self) -> dict[str, str]:
        """What nnU-Net's commands run with."""
        cores = available_cores()
        ours = {
            "nnUNet_raw": str(self.raw.parent),
            "nnUNet_preprocessed": str(self.folder / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.folder / "nnUNet_results"),
        }
        defaults = {
            "nnUNet_n_proc_DA": str(max(1, min(4, cores - 1))),
            "nnUNet_def_n_proc": self.workers,
            # Threads that wait actively take the cores from those that still work.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return {**defaults, **os.environ, **ours}


class Steps:
    """Runs nnU-Net's commands, tells what runs and how long it took, and keeps their output in a log file."""

    def __init__(self, workspace: Workspace, console: Console):
        self.workspace = workspace
        self.console = console
        self.logs = workspace.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def run(self, title: str, log: str, command: Sequence[str]) -> float:
        """Run one command; returns its seconds. Raises `RuntimeError` with the end of its output where it fails."""
        program = find_program(command[0])
        path = self.logs / f"{log}.log"
        started = time.monotonic()
        with self.console.status(f"{title}: {' '.join(command)}"), path.open("w") as output:
            code = subprocess.run(
                [program, *command[1:]],
                env=self.workspace.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.workspace.folder,
            ).returncode
        seconds = time.monotonic() - started
        if code != 0:
            tail = "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(
                f"{title}: {command[0]} ended with exit code {code}; all its output is in {path}\n{tail}"
            )
        self.console.print(f"{title}: {seconds:.0f} s")
        return seconds


def run_demo(folder: Path, device: str = "cpu", data: Path | None = None, console: Console | None = None) -> Path:
    """Plan, preprocess, train GLIMS and LATUP-Net, predict unseen cases, evaluate; returns the path of the report.

    Args:
        folder: for everything the demo writes.
        device: "cpu", "cuda" or "mps", as nnU-Net's -device.
        data: a raw data set in nnU-Net's layout (DatasetXXX_NAME); None generates phantoms of heads with tumours.
            Without labelsTs the validation cases of fold 0 are predicted.

    Raises:
        UsageError: `data` is no raw data set.
        RuntimeError: one of nnU-Net's commands failed; the message has the end of its output.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    console = console or Console()
    raw = write_raw_dataset(folder / "nnUNet_raw") if data is None else _check_raw(data.resolve())
    workspace = Workspace(folder, raw, device)
    steps = Steps(workspace, console)
    console.print(
        f"Data: {raw}\nEverything is written to {folder}, logs of nnU-Net's commands to {steps.logs}", soft_wrap=True
    )

    if not (workspace.preprocessed / "nnUNetPlans.json").exists():
        number = workspace.dataset.removeprefix("Dataset")[:3]
        steps.run(
            "Plan and preprocess",
            "plan_and_preprocess",
            [
                "nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "--verify_dataset_integrity",
                "-npfp", workspace.workers, "-np", workspace.workers,
            ],
        )  # fmt: skip

    entries = []
    settings = Settings(of_dataset(read_json(raw / "dataset.json")), PRESETS["default"])
    for name, override in OVERRIDES.items():
        plans_name = apply_override(workspace.preprocessed, override, CONFIGURATION, overwrite=True).plans_name
        trainer = network_named(name).trainer
        model = workspace.model(trainer, plans_name)
        if not (model / "fold_0/validation/summary.json").exists():
            steps.run(
                f"Train {name}",
                f"train_{name}",
                [
                    "nnUNetv2_train", workspace.dataset, CONFIGURATION, "0", "-tr", trainer, "-p", plans_name,
                    "-device", device, "--c",
                ],
            )  # fmt: skip
        images, truths = _unseen_cases(workspace)  # nnU-Net makes splits when it trains
        predictions = folder / "predictions" / name
        if not _is_newer(predictions / PREDICTED, model / "fold_0/checkpoint_final.pth"):
            steps.run(
                f"Predict {name}",
                f"predict_{name}",
                [
                    "nnUNetv2_predict", "-i", str(images), "-o", str(predictions), "-d", workspace.dataset,
                    "-c", CONFIGURATION, "-tr", trainer, "-p", plans_name, "-f", "0", "-device", device,
                    "-npp", "0", "-nps", "0",
                ],
            )  # fmt: skip
            (predictions / PREDICTED).touch()
        summary = evaluate(of_folders(truths, predictions).files, settings, predictions / "evaluation")
        dice = {short(region): statistics["dice"]["mean"] for region, statistics in summary["statistics"].items()}
        console.print(f"{name}: Dice " + ", ".join(f"{region} {mean:.3f}" for region, mean in dice.items()))
        entries.append(Entry(name, read_results(predictions / "evaluation"), ModelFolder(model)))
    report = folder / "report.html"
    write_text(report, _page(workspace, entries, images))
    console.print(f"Report: {report}", soft_wrap=True)
    return report


def _check_raw(data: Path) -> Path:
    if not (data / "dataset.json").exists() or not re.fullmatch(r"Dataset\d{3}_.+", data.name):
        raise UsageError(
            f"{data}: this is no raw data set of nnU-Net. It must be a folder DatasetXXX_NAME with dataset.json, imagesTr and "
            "labelsTr"
        )
    return data


def _is_newer(file: Path, than: Path) -> bool:
    return file.exists() and file.stat().st_mtime_ns > than.stat().st_mtime_ns


def _unseen_cases(workspace: Workspace) -> tuple[Path, Path]:
    """Folders of images and labels of cases that fold 0 was not trained on."""
    if any((workspace.raw / "labelsTs").glob("*")):
        return workspace.raw / "imagesTs", workspace.raw / "labelsTs"
    images, labels = workspace.folder / "unseen/images", workspace.folder / "unseen/labels"
    splits = read_json(workspace.preprocessed / "splits_final.json")
    ending = read_json(workspace.raw / "dataset.json")["file_ending"]
    shutil.rmtree(images.parent, ignore_errors=True)
    images.mkdir(parents=True)
    labels.mkdir()
    for case in splits[0]["val"]:
        for image in (workspace.raw / "imagesTr").glob(f"{case}_????{ending}"):
            (images / image.name).symlink_to(image)
        (labels / f"{case}{ending}").symlink_to(workspace.raw / "labelsTr" / f"{case}{ending}")
    return images, labels


def _page(workspace: Workspace, entries: list[Entry], images: Path) -> str:
    dataset = read_json(workspace.raw / "dataset.json")
    generated = "glims_phantom" in dataset
    data = "synthetic heads with tumours, generated for this demo" if generated else f"the data set {workspace.dataset}"
    command = f"nnunet-glims demo --out {workspace.folder.name} --device {workspace.device}"
    if not generated:
        command += f" --data {workspace.dataset}"
    notes = [
        f"{listed(entry.name for entry in entries)}, trained on {data} by nnU-Net's own commands for a few minutes, then run "
        "on cases they had not seen. This shows that everything works; it says nothing about how well the networks segment "
        "when they are trained as long as they should be.",
        f"Machine: {_machine(workspace.device)}. Command: {command}",
    ]
    board = make_board(f"nnunet-glims demo: {dataset.get('name', workspace.dataset)}", entries)
    return render(board, telling_cases(board, SHOWN_CASES, images), notes=notes)


def _machine(device: str) -> str:
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    text = f"{processor}, {available_cores()} cores"
    if device == "cuda":
        import torch

        text += f", {torch.cuda.get_device_name()}"
    return f"{text}, {platform.system()}, Python {platform.python_version()}"
