"""Remember signals that announce the end of a training, so that it can save and stop between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_STOPPED = 75
"""Exit code after a signal when the training has saved and can be continued with --c (EX_TEMPFAIL)."""

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
"""A scheduler sends SIGTERM or SIGUSR1, Ctrl-C sends SIGINT, a terminal that is closed SIGHUP. Windows has not all of them."""
_HANGUP = getattr(signal, "SIGHUP", None)


class StopSignals:
    """Remembers the signal that this process received.

    Attributes:
        received: number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM, or a text if another process of a distributed training received it."""
        return "a signal to another worker" if self.received is None else signal.Signals(self.received).name

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Within this context, a signal is only remembered, but a second Ctrl-C ends the process at once.

        Outside of the main thread nothing is changed.
        """
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
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def leave_signals_to_parent() -> None:
    """Let a data loading process ignore the signals that its training obeys, but end on SIGTERM.

    A terminal and some schedulers send signals to all processes of a job. The training still needs batches until it has
    saved, and then ends the data loading processes.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_STOPPED)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # `nohup` lets a command ignore SIGHUP, so that it goes on when its terminal is closed.
    wanted = [number for number in STOP_SIGNALS if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
