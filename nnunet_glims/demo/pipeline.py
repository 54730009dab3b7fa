"""The demo: stock nnU-Net commands from raw data to predictions of unseen cases, for two networks, and a report."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nnunet_glims import __version__
from nnunet_glims.demo.phantom import write_raw_dataset
from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.evaluation.regions import short
from nnunet_glims.files import check_output_folder, make_folder, read_json, write_json, write_text
from nnunet_glims.locks import lock
from nnunet_glims.networks import network_named
from nnunet_glims.nnunet.dataset_json import read_dataset_json
from nnunet_glims.nnunet.evaluation import evaluate_folders
from nnunet_glims.nnunet.folders import label_maps
from nnunet_glims.nnunet.models import ModelFolder
from nnunet_glims.nnunet.plans.override import apply_override
from nnunet_glims.nnunet.splits import read_splits
from nnunet_glims.processes import available_cores, find_program
from nnunet_glims.report.board import make_board
from nnunet_glims.report.cases import choose_cases
from nnunet_glims.report.drawing import listed
from nnunet_glims.report.entries import LeaderboardEntry, Run, check_results
from nnunet_glims.report.page import render

OVERRIDES = {"GLIMS": "cpu_demo", "LATUPNet": "latupnet_cpu_demo"}
"""Network -> plans override."""
CONFIGURATION = "3d_fullres"
SHOWN_CASES = 2


@dataclass(frozen=True)
class Workspace:
    """The folders of one demo.

    Attributes:
        folder: the folder for everything that the demo writes.
        raw: the raw data set in nnU-Net's layout.
        device: "cpu", "cuda" or "mps".
    """

    folder: Path
    raw: Path
    device: str

    @property
    def dataset(self) -> str:
        """Name of the data set, DatasetNNN_NAME."""
        return self.raw.name

    @property
    def preprocessed(self) -> Path:
        """Folder of the data set's plans and preprocessed data."""
        return self.folder / "nnUNet_preprocessed" / self.dataset

    def model(self, trainer: str, plans_name: str) -> Path:
        """Return the folder of a trained model."""
        return self.folder / "nnUNet_results" / self.dataset / f"{trainer}__{plans_name}__{CONFIGURATION}"

    @property
    def workers(self) -> str:
        """Number of processes for one of nnU-Net's commands; few, because starting one takes as long as a case."""
        return str(max(1, min(4, available_cores() // 2)))

    def environment(self) -> dict[str, str]:
        """Return the environment variables that nnU-Net's commands run with."""
        cores = available_cores()
        ours = {
            "nnUNet_raw": str(self.raw.parent),
            "nnUNet_preprocessed": str(self.folder / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.folder / "nnUNet_results"),
        }
        defaults = {
            "nnUNet_n_proc_DA": str(max(1, min(4, cores - 1))),
            "nnUNet_def_n_proc": self.workers,
            # Threads that wait actively would occupy cores that working threads need.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return {**defaults, **os.environ, **ours}


class Steps:
    """Runs nnU-Net's commands, unless they were run before with the same command and the same inputs.

    The folder logs has two files for each step: NAME.log, the output of the command, and NAME.json, which says what the
    step was made from and whether it finished.
    """

    def __init__(self, workspace: Workspace, console: Console):
        self.workspace = workspace
        self.console = console
        self.logs = workspace.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        title: str,
        command: Sequence[str],
        inputs: Mapping[str, Any],
        results: Sequence[Path],
        folder: Path,
        speed: Sequence[str] = (),
    ) -> str:
        """Run a command, unless its results are there and were made by the same command from the same inputs.

        Args:
            name: name of the step, and of its files in the folder logs.
            title: what is done, for the user.
            command: program and arguments.
            inputs: everything else that the results depend on, as JSON.
            results: files that the command writes.
            folder: folder that holds the results. It is removed before the command is run with another command or other
                inputs than the last time; else an unfinished run is continued.
            speed: further arguments, which the results do not depend on.

        Returns:
            The fingerprint of the command and its inputs.

        Raises:
            ProcessingError: the command failed; the message has the end of its output.
        """
        made_from = json.loads(json.dumps({"version": __version__, "command": list(command), **inputs}))
        path = self.logs / f"{name}.json"
        last = _last_run(path)
        unchanged = last.get("made_from") == made_from
        if not (unchanged and last.get("finished") and all(result.exists() for result in results)):
            if not unchanged and folder.exists():
                shutil.rmtree(folder)
            write_json(path, {"finished": False, "made_from": made_from})
            self._run(name, title, [*command, *speed])
            write_json(path, {"finished": True, "made_from": made_from})
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def _run(self, name: str, title: str, command: Sequence[str]) -> None:
        program = find_program(command[0])
        path = self.logs / f"{name}.log"
        started = time.monotonic()
        with self.console.status(f"{title}: {' '.join(command)}"), path.open("wb") as output:
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
            tail = "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise ProcessingError(
                f"{title}: {command[0]} ended with exit code {code}; all its output is in {path}\n{tail}"
            )
        self.console.print(f"{title}: {seconds:.0f} s")


def _last_run(path: Path) -> Mapping[str, Any]:
    """Return what the last run of a step wrote; nothing where there was none or its file is damaged."""
    try:
        content = read_json(path)
    except UsageError:
        return {}
    return content if isinstance(content, dict) else {}


def run_demo(folder: Path, device: str = "cpu", data: Path | None = None, console: Console | None = None) -> Path:
    """Plan, preprocess, train GLIMS and LATUP-Net, predict unseen cases, evaluate, and write a report.

    A second run in the same folder skips the steps whose command, plans and data are unchanged, continues an
    interrupted training, and does all other steps again.

    Args:
        folder: folder for everything that the demo writes.
        device: "cpu", "cuda" or "mps", as nnU-Net's -device.
        data: a raw data set in nnU-Net's layout (DatasetXXX_NAME); None generates phantoms of heads with tumours.
            Without labelsTs the validation cases of fold 0 are predicted.
        console: where progress is printed; None prints it to the standard output.

    Returns:
        The path of the report.

    Raises:
        UsageError: `data` is no raw data set, `folder` lies in it, or torch finds no such device; nothing was written.
        ProcessingError: another process runs a demo in this folder, or one of nnU-Net's commands failed; the message has
            the end of its output.
    """
    folder = folder.resolve()
    _check_device(device)
    given = None if data is None else _check_raw(data.resolve())
    check_output_folder(folder, [] if given is None else [given])
    make_folder(folder)
    with lock(folder / "logs/demo.lock", f"{folder}: demo"):
        raw = given or write_raw_dataset(folder / "nnUNet_raw")
        return _run_steps(
            Workspace(folder, raw, device), console or Console(markup=False, emoji=False, highlight=False)
        )


def _run_steps(workspace: Workspace, console: Console) -> Path:
    folder, raw, device = workspace.folder, workspace.raw, workspace.device
    steps = Steps(workspace, console)
    console.print(
        f"Data: {raw}\nEverything is written to {folder}, logs of nnU-Net's commands to {steps.logs}", soft_wrap=True
    )

    number = workspace.dataset.removeprefix("Dataset")[:3]
    preprocessed = steps.run(
        "plan_and_preprocess",
        "Plan and preprocess",
        ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "--verify_dataset_integrity"],
        {"files": _stamps([raw / "dataset.json", *_files(raw / "imagesTr"), *_files(raw / "labelsTr")])},
        [workspace.preprocessed / "nnUNetPlans.json"],
        workspace.preprocessed,
        ["-npfp", workspace.workers, "-np", workspace.workers],
    )

    entries = []
    for name, override in OVERRIDES.items():
        plans_name = apply_override(workspace.preprocessed, override, CONFIGURATION, overwrite=True).plans_name
        plans = read_json(workspace.preprocessed / f"{plans_name}.json")
        trainer = network_named(name).trainer
        model = workspace.model(trainer, plans_name)
        trained = steps.run(
            f"train_{name}",
            f"Train {name}",
            [
                "nnUNetv2_train", workspace.dataset, CONFIGURATION, "0", "-tr", trainer, "-p", plans_name,
                "-device", device, "--c",
            ],
            {"preprocessed": preprocessed, "plans": plans},
            [model / "fold_0/checkpoint_final.pth", model / "fold_0/validation/summary.json"],
            model / "fold_0",
        )  # fmt: skip
        images, truths = _unseen_cases(workspace)  # nnU-Net makes splits when it trains
        predictions = folder / "predictions" / name
        checkpoint = model / "fold_0/checkpoint_final.pth"
        steps.run(
            f"predict_{name}",
            f"Predict {name}",
            [
                "nnUNetv2_predict", "-i", str(images), "-o", str(predictions), "-d", workspace.dataset,
                "-c", CONFIGURATION, "-tr", trainer, "-p", plans_name, "-f", "0", "-device", device,
            ],
            {"trained": trained, "files": _stamps([checkpoint, *_files(images)])},
            [predictions / file.name for file in _files(truths)],
            predictions,
            ["-npp", "0", "-nps", "0"],
        )  # fmt: skip
        results = evaluate_folders(truths, predictions)
        check_results(name, results)
        statistics = results.summary["statistics"]
        dice = {short(region): of_region["dice"]["mean"] for region, of_region in statistics.items()}
        console.print(f"{name}: Dice " + ", ".join(f"{region} {mean:.3f}" for region, mean in dice.items()))
        entries.append(LeaderboardEntry(name, [Run(predictions, results, ModelFolder(model))]))
    report = folder / "report.html"
    write_text(report, _page(workspace, entries, images))
    console.print(f"Report: {report}", soft_wrap=True)
    return report


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if not (torch.cuda if device == "cuda" else torch.backends.mps).is_available():
        raise UsageError(f"--device {device}: torch finds none on this machine: use --device cpu")


def _check_raw(data: Path) -> Path:
    if not data.is_dir():
        raise UsageError(f"{data}: this is no raw data set of nnU-Net: there is no such folder")
    missing = [name for name in ("dataset.json", "imagesTr", "labelsTr") if not (data / name).exists()]
    if missing or not re.fullmatch(r"Dataset\d{3}_.+", data.name):
        raise UsageError(
            f"{data}: this is no raw data set of nnU-Net. It must be a folder DatasetXXX_NAME with dataset.json, imagesTr and "
            "labelsTr"
        )
    ending = read_dataset_json(data / "dataset.json")["file_ending"]
    if not label_maps(data / "labelsTr", ending):
        raise UsageError(f"{data / 'labelsTr'}: there are no label maps (*{ending})")
    return data


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _stamps(files: Sequence[Path]) -> dict[str, list[int]]:
    """Return size and time of the last change of each file, which stand for its content."""
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _unseen_cases(workspace: Workspace) -> tuple[Path, Path]:
    """Return the folders of images and of labels of cases that fold 0 was not trained on."""
    if any((workspace.raw / "labelsTs").glob("*")):
        return workspace.raw / "imagesTs", workspace.raw / "labelsTs"
    images, labels = workspace.folder / "unseen/images", workspace.folder / "unseen/labels"
    fold = read_splits(workspace.preprocessed / "splits_final.json")[0]
    ending = read_dataset_json(workspace.raw / "dataset.json")["file_ending"]
    shutil.rmtree(images.parent, ignore_errors=True)
    images.mkdir(parents=True)
    labels.mkdir()
    for case in fold.val:
        for image in (workspace.raw / "imagesTr").glob(f"{glob.escape(case)}_????{ending}"):
            _link(images / image.name, image)
        _link(labels / f"{case}{ending}", workspace.raw / "labelsTr" / f"{case}{ending}")
    return images, labels


def _link(path: Path, to: Path) -> None:
    """Link to a file, or copy it where the file system has no links."""
    try:
        path.symlink_to(to)
    except OSError:
        shutil.copyfile(to, path)


def _page(workspace: Workspace, entries: list[LeaderboardEntry], images: Path) -> str:
    dataset = read_dataset_json(workspace.raw / "dataset.json")
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
    return render(board, choose_cases(board, SHOWN_CASES, images), notes=notes)


def _machine(device: str) -> str:
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    text = f"{processor}, {available_cores()} cores"
    if device == "cuda":
        import torch

        text += f", {torch.cuda.get_device_name()}"
    return f"{text}, {platform.system()}, Python {platform.python_version()}"
