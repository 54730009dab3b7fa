import pytest

from nnunet_glims import files


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Syncing dozens of tiny files takes most of a conversion's time here; tests/test_files.py checks that it is done."""
    monkeypatch.setattr(files, "sync", lambda _: None)
