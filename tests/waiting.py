"""Waiting for conditions: no test may depend on how fast the machine is, or on what else it does."""

import time
from pathlib import Path

PATIENCE = 300
"""Seconds after which a condition counts as never reached. Only a failure takes that long."""


def wait_until(reached):
    """Wait until a function returns something true, and return that."""
    end = time.monotonic() + PATIENCE
    while not (found := reached()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def is_running(pid):
    """Whether the process is there and not just waiting to be collected, for which a container may have nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
