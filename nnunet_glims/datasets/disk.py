"""Room on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from nnunet_glims.errors import UsageError


def need(nbytes: int, folder: Path, what: str) -> None:
    """Raise `UsageError` where the disk of `folder` has not that many bytes free."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise UsageError(
            f"{folder}: {nbytes / 2**30:.1f} GiB are needed {what} and {free / 2**30:.1f} GiB are free: make room, or "
            "point nnUNet_raw to another disk"
        )
