"""Limits of the system that data loading processes run into: shared memory and open files."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path

from nnunet_glims.doctor.findings import Finding, Findings

SHARED_MEMORY = Path("/dev/shm")
ENOUGH_SHARED_GIB = 1
ENOUGH_OPEN_FILES = 1024
_MORE = "give a container more: docker run --shm-size=8g"


def check_shared_memory() -> Findings[None]:
    """Yield whether processes can share memory, and how much. Systems other than Linux have no folder for it."""
    topic, folder = "shared memory", SHARED_MEMORY
    if not sys.platform.startswith("linux"):
        return
    if not os.path.isdir(folder):
        yield Finding(topic, "fail", f"{folder}: there is no such folder, and data loading needs it", _mount("rw"))
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
            file.flush()
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        state = f"{folder}: cannot be written to ({error.strerror}), and data loading needs it"
        yield Finding(topic, "fail", state, f"remove what is in it, or {_mount('rw,mode=1777')}")
        return
    disk = shutil.disk_usage(folder)
    size, free = disk.total / 2**30, disk.free / 2**30
    if size < ENOUGH_SHARED_GIB:
        yield Finding(topic, "warn", f"{size:.2f} GiB in {folder}", _MORE)
    elif free < ENOUGH_SHARED_GIB:
        state = f"{free:.2f} of {size:.0f} GiB in {folder} are free"
        yield Finding(topic, "warn", state, f"remove what ended processes left there: ls -l {folder}")
    else:
        yield Finding(topic, "ok", f"{size:.0f} GiB")


def _mount(options: str) -> str:
    return f"mount it: mount -t tmpfs -o {options} tmpfs {SHARED_MEMORY} (docker run --tmpfs {SHARED_MEMORY}:{options})"


def check_open_files() -> Findings[None]:
    """Yield how many files a process may open; Windows has no such limit."""
    try:
        import resource
    except ImportError:
        return
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < ENOUGH_OPEN_FILES:
        wanted = ENOUGH_OPEN_FILES if most < 0 else min(most, 4096)
        way_out = f"ulimit -n {wanted}" if wanted > files else "ask the administrator for a higher limit (ulimit -n)"
        yield Finding("open files", "warn", f"at most {files}", way_out)
    else:
        yield Finding("open files", "ok", f"at most {files}")
