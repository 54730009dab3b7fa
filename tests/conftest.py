import os
from pathlib import Path

import pytest


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
    """With several processes, tests that share what took long to make stay in one of them."""
    for item in items:
        folder, module = item.path.parent.name, item.path.stem
        if folder == "stock":
            item.add_marker(pytest.mark.xdist_group(folder))
        elif module in ("test_packaging", "test_published_setups"):
            item.add_marker(pytest.mark.xdist_group(module))
