"""Stock nnU-Net's commands on a tiny data set with tiny networks: most in this process, some as a user starts them.

A command that is started imports nnU-Net, and so does every worker it starts: seconds each, for work of tenths of a second.
`call` therefore runs a command's entry point in the process of the tests, and `run_command` starts the command.
"""

import multiprocessing
import os
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points
from io import StringIO
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.utilities import utils as nnunet_utilities

from nnunet_glims.nnunet.discovery import announce

collect_foreground_intensities = DatasetFingerprintExtractor.collect_foreground_intensities

DATASET = "Dataset901_Tiny"
CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans_tiny"
GLIMS, LATUPNET = "nnUNetTrainerGLIMS", "nnUNetTrainerLATUPNet"
FOLDS = ("0", "1", "2", "3", "4")

NETWORK_ARGUMENTS = {
    "GLIMS": {"feature_size": 3, "depths": [1] * 5, "num_heads": [3] * 5},
    "LATUPNet": {"features": [16, 16, 16]},
}
SHORT = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1}


def tiny_override(network: str, **training) -> dict:
    """Content of a plans override with the smallest such network and a training of seconds."""
    return {
        "description": "a training of seconds",
        "source": "made up for tests",
        "network": network,
        "network_arguments": NETWORK_ARGUMENTS[network],
        "patch_size": [32, 32, 32],
        "batch_size": 2,
        "training": {**SHORT, **training},
    }


def child_environment(environment: dict) -> dict[str, str]:
    """This process's variables without nnU-Net's and ours (our .pth has set one here already), and those given."""
    own = {name: value for name, value in os.environ.items() if not name.upper().startswith("NNUNET")}
    own.pop("PYTHONPATH", None)
    settings = {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), own.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        # "-device cpu" asks for a thread a core; threads that wait actively are 50 times slower on busy cores.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return {**own, **settings, **{name: str(value) for name, value in environment.items()}}


def run_command(*arguments, **environment) -> None:
    """Start a command in an empty folder; fail the test, showing the end of the command's output, where the command fails.

    environment: variables for the command, above all nnU-Net's three folders.
    """
    command = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            command, cwd=folder, env=child_environment(environment), capture_output=True, text=True, timeout=500
        )
    assert finished.returncode == 0, "\n".join([" ".join(command), finished.stdout[-3000:], finished.stderr[-3000:]])


def call(*arguments, **environment) -> str:
    """What `run_command` does, in this process and with threads as workers; returns what the command prints.

    Raises:
        Exception: whatever the command ends with.
        AssertionError: it ends with an exit code that is not 0.
    """
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        exit_code = call_entry_point([str(argument) for argument in arguments], child_environment(environment))
    assert exit_code == 0, printed.getvalue()
    return printed.getvalue()


def call_entry_point(command: list[str], environment: dict[str, str]) -> int:
    """Run the entry point of an installed command with these variables in an empty folder; returns its exit code."""
    (script,) = entry_points(group="console_scripts", name=command[0])
    announce(environment)  # as our start-up file does in a process that is started
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for name in set(os.environ) - set(environment):
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        patch.setattr(multiprocessing, "get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
        patch.setattr(nnunet_utilities, "Pool", ThreadPool)
        patch.setattr(multiprocessing, "cpu_count", lambda: 1)  # nnU-Net gives torch a thread for each
        # nnU-Net's plots take longer than a training of two steps.
        patch.setattr(LocalLogger, "plot_progress_png", lambda _, folder: Path(folder, "progress.png").touch())
        patch.setattr(DatasetFingerprintExtractor, "collect_foreground_intensities", staticmethod(few_intensities))
        try:
            return script.load()() or 0
        except SystemExit as ended:
            return ended.code or 0
        finally:
            torch.set_num_threads(threads)


def few_intensities(segmentation, images, seed=1234, num_samples=10000):
    """Stands in for nnU-Net's function, which draws 10⁸ voxels from every data set: half a minute, however small it is."""
    return collect_foreground_intensities(segmentation, images, seed, min(num_samples, 10000))


def training_command(fold, *arguments, trainer: str = GLIMS, plans: str = PLANS) -> tuple:
    """`nnUNetv2_train` of one fold on the CPU."""
    return ("nnUNetv2_train", DATASET, CONFIGURATION, fold, "-tr", trainer, "-p", plans, "-device", "cpu", *arguments)


def train(fold, *arguments, trainer: str = GLIMS, plans: str = PLANS, **environment) -> str:
    """Train one fold in this process; returns what nnU-Net prints."""
    return call(*training_command(fold, *arguments, trainer=trainer, plans=plans), **environment)


def prediction_command(output: Path, raw: Path, *arguments, trainer: str = GLIMS, plans: str = PLANS, folds=("0",)):
    """`nnUNetv2_predict` of the test case with probabilities, on the CPU."""
    model = ("-d", DATASET, "-c", CONFIGURATION, "-tr", trainer, "-p", plans, "-f", *folds)
    images = Path(raw, DATASET, "imagesTs")
    files = ("-i", images, "-o", output, "--save_probabilities", "-device", "cpu")
    return ("nnUNetv2_predict", *model, *files, *arguments)


def predict(output: Path, *arguments, trainer: str = GLIMS, plans: str = PLANS, folds=("0",), **environment) -> Path:
    """Predict the test case in this process; returns the folder of the prediction."""
    raw = environment["nnUNet_raw"]
    command = prediction_command(output, raw, *arguments, trainer=trainer, plans=plans, folds=folds)
    call(*command, "-npp", 0, "-nps", 0, **environment)
    return output


def model_folder(folders: dict, trainer: str = GLIMS, plans: str = PLANS) -> Path:
    return Path(folders["nnUNet_results"], DATASET, f"{trainer}__{plans}__{CONFIGURATION}")


def segmentation(folder: Path) -> np.ndarray:
    """Labels (X, Y, Z) of the only case in a folder."""
    (path,) = folder.glob("*.nii.gz")
    return np.asarray(nibabel.load(path).dataobj)


def probabilities(folder: Path) -> np.ndarray:
    """Probabilities (region, Z, Y, X) of the only case in a folder, as nnU-Net orders them."""
    (path,) = folder.glob("*.npz")
    return np.load(path)["probabilities"].astype(np.float32)


def assert_same_prediction(folder: Path, reference: Path) -> None:
    np.testing.assert_allclose(probabilities(folder), probabilities(reference), atol=1e-3)
    assert (segmentation(folder) == segmentation(reference)).mean() > 0.999
