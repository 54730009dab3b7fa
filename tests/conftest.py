import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# Before torch and nnU-Net are imported, here and in what tests start. Several test processes share the cores, and threads
# that wait actively take the cores from those that still work. One worker is enough for nnU-Net's smallest data sets.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("nnUNet_def_n_proc", "1")
# Continuous integration asks programs for colours, and some shells export the size of their window.
for _name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(_name, None)


def _has_a_cache():
    """Whether this user has a folder for compiled kernels, which networks warn about otherwise."""
    folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nnunet_glims")
    try:
        if os.path.isabs(folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


if not _has_a_cache():
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cache")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# A suite that is started in the background, or by nohup, begins with these ignored, and hands that on to what tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def real_cases():
    """The folder that NNUNET_GLIMS_REALDATA names: hippocampus/, brats2018/ and chaos_mr/ with public cases."""
    folder = os.environ.get("NNUNET_GLIMS_REALDATA")
    if not folder:
        pytest.skip("NNUNET_GLIMS_REALDATA names no folder with real cases")
    return Path(folder)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty folder that nnUNet_raw names."""
    folder = tmp_path / "nnUNet_raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    return folder


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items):
    """Long tests are slow ones; with several processes, tests that share what took long to make stay in one of them."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
        folder, module = item.path.parent.name, item.path.stem
        if folder == "stock":
            shared = "five_folds" if "five_folds" in item.fixturenames else "fold_0"
            item.add_marker(pytest.mark.xdist_group(shared))
        elif module in ("test_packaging", "test_published_setups"):
            item.add_marker(pytest.mark.xdist_group(module))
