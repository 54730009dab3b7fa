"""Remember signals with which a scheduler announces the end of a job, so that a training can stop between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_STOPPED = 75
"""Exit code after SIGTERM or SIGUSR1 when the training has saved and can be continued with --c (EX_TEMPFAIL)."""

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Windows has no SIGUSR1."""

_WORKERS_DIED = "One or more background workers are no longer alive"
"""How the error begins that batchgenerators' data loader raises when its processes are gone."""


def workers_died(error: BaseException) -> bool:
    """Return whether an error says that data loading processes have died, as after a signal to all processes of a job."""
    return isinstance(error, RuntimeError) and str(error).startswith(_WORKERS_DIED)


class StopSignals:
    """Remembers the signal that this process received.

    Data loading processes inherit this handler. They end on SIGTERM as usual and ignore SIGUSR1, so that a scheduler may send
    it to all processes of a job. The training process ends them after it has saved.

    Attributes:
        received: number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = os.getpid()

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM, or a text if another process of a distributed training received it."""
        return "a signal to another worker" if self.received is None else signal.Signals(self.received).name

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Within this context, a signal is only remembered. Outside of the main thread nothing is changed."""
        with _handled_by(self._remember):
            yield

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Within this context, a signal ends the process with `EXIT_STOPPED`, at once if it was received before."""
        if self.received is not None:
            raise SystemExit(EXIT_STOPPED)
        with _handled_by(_leave):
            yield

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.received = number
        elif number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_STOPPED)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
