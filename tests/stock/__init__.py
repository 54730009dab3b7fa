"""Stock nnU-Net's command line, run in child processes on a tiny data set with tiny networks."""

import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import nibabel
import numpy as np

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


def run_command(*arguments, fails: bool = False, **environment) -> subprocess.CompletedProcess:
    """Run a command in an empty folder; fail the test, showing its last output, where its exit code is unexpected.

    fails: the command is expected to fail.
    environment: variables for the command, above all nnU-Net's three folders.
    """
    command = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            command, cwd=folder, env=child_environment(environment), capture_output=True, text=True, timeout=500
        )
    check_exit(command, finished.returncode, finished.stdout, finished.stderr, fails)
    return finished


def check_exit(command, exit_code: int, stdout: str, stderr: str, fails: bool = False) -> None:
    """Raise `AssertionError` with the last output of a command whose exit code is unexpected."""
    if (exit_code != 0) != fails:
        raise AssertionError(
            f"exit code {exit_code} of: {' '.join(command)}\n"
            f"--- stdout, last part\n{stdout[-3000:]}\n--- stderr, last part\n{stderr[-3000:]}"
        )


def train(fold, *arguments, trainer: str = GLIMS, plans: str = PLANS, fails: bool = False, **environment):
    """`nnUNetv2_train` of one fold on the CPU."""
    model = (DATASET, CONFIGURATION, fold, "-tr", trainer, "-p", plans, "-device", "cpu")
    return run_command("nnUNetv2_train", *model, *arguments, fails=fails, **environment)


def predict(output: Path, *arguments, trainer: str = GLIMS, folds=("0",), **environment) -> Path:
    """`nnUNetv2_predict` of the test case with probabilities, on the CPU."""
    model = ("-d", DATASET, "-c", CONFIGURATION, "-tr", trainer, "-p", PLANS, "-f", *folds)
    run_command("nnUNetv2_predict", *model, *prediction_arguments(output, environment), *arguments, **environment)
    return output


def prediction_arguments(output: Path, environment: dict) -> tuple:
    """What `nnUNetv2_predict` and `nnUNetv2_predict_from_modelfolder` have in common."""
    images = Path(environment["nnUNet_raw"], DATASET, "imagesTs")
    return ("-i", images, "-o", output, "-device", "cpu", "-npp", 1, "-nps", 1, "--save_probabilities")


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
