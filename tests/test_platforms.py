"""What Windows and macOS lack is hidden in a process: the package can be imported there, and its networks run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MISSING = {
    "macOS": {"modules": [], "os": ["waitid", "sched_getaffinity"], "signal": []},
    "Windows": {
        "modules": ["fcntl", "resource", "pwd", "grp", "termios"],
        "os": ["waitid", "sched_getaffinity", "killpg", "setsid", "getuid", "sysconf", "fork"],
        "signal": ["SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP"],
    },
}
HIDE = """
import ctypes, os, signal, sys
for name in {modules}:
    sys.modules[name] = None
for module, names in ((os, {os}), (signal, {signal})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
find = ctypes.CDLL.__getattr__
def without_mallopt(library, name):
    if name == "mallopt":
        raise AttributeError(name)
    return find(library, name)
ctypes.CDLL.__getattr__ = without_mallopt
"""
USE = """
import importlib, pkgutil
import nnunet_glims
for module in pkgutil.walk_packages(nnunet_glims.__path__, "nnunet_glims."):
    if module.name.rpartition(".")[2] not in ("__main__", "triton_kernels"):  # Triton is for Linux alone
        importlib.import_module(module.name)
import nnunet_glims.trainers
from nnunet_glims.cli import main
assert main(["plans", "list"]) == 0
import torch
from nnunet_glims.architectures import GLIMS
from nnunet_glims.processes import available_cores, workers_or_default
network = GLIMS(1, 2, patch_size=(32, 32, 32), deep_supervision=False).eval()
with torch.no_grad():
    assert network(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)
assert available_cores() >= 1 and workers_or_default(None) >= 1
assert main(["compare", "run", "/nowhere/comparison.yaml"]) == 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", MISSING)
def test_everything_is_imported_and_a_network_runs_without_what_a_system_lacks(system):
    program = HIDE.format(**MISSING[system]) + USE
    result = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "compare run: this needs Linux, or macOS with Python 3.13" in result.stderr
