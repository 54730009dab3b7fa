"""Progress of the commands that work on many cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from nnunet_glims.processes import Progress


def progress_on(console: Console) -> Progress:
    """Return a function that shows a bar on a terminal while results come, and nothing where the output is a file."""
    from rich.progress import track

    from nnunet_glims.processes import quietly

    if not console.is_terminal:
        return quietly
    return lambda results, what, count: track(results, what, count, console=console, transient=True)
