"""The command `nnunet-glims`.

Each of its commands is a module here, with a text HELP and the functions `add_arguments` and `run`; the latter may
return an exit code. Modules that take long to import are imported inside `run`, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module

from nnunet_glims import __version__
from nnunet_glims.cli.output import printed_streams
from nnunet_glims.errors import ProcessingError, UserError

COMMANDS = (
    "compare",
    "confusion",
    "convert",
    "demo",
    "doctor",
    "env",
    "evaluate",
    "explain",
    "export",
    "import-released",
    "leaderboard",
    "plans",
    "postprocess",
    "postprocess-fit",
    "predict-onnx",
    "submit",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="nnunet-glims",
        description="Tools around the light networks for nnU-Net. Training and prediction are nnU-Net's own commands: "
        "nnUNetv2_train ... -tr nnUNetTrainerGLIMS, nnUNetv2_predict.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-glims {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"nnunet_glims.cli.{name.replace('-', '_')}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command's arguments; None for those of this process.

    Returns:
        The exit code: 0, 1 for a failure, 2 for wrong use, 130 after Ctrl-C.
    """
    try:
        with printed_streams(), _stopped_by_signals():
            try:
                return _run(arguments)
            finally:
                _finish_output()
    except Stopped as stopped:
        os.kill(os.getpid(), stopped.number)  # who sent the signal sees that the process ended by it
        return 128 + stopped.number


class Stopped(KeyboardInterrupt):
    """The system asks this process to end; what a command has begun is cleaned up, as after Ctrl-C.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` at SIGTERM and SIGHUP where nobody else handles or ignores them."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # others must not set handlers
        known = []
    handled = [number for number in known if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _run(arguments: Sequence[str] | None) -> int:
    name, debug = "nnunet-glims", False
    try:
        options = build_parser().parse_args(arguments)
        name, debug = f"{name} {options.command}", options.debug
        code = options.run(options) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except Stopped as stopped:
        _complain(f"{name}: stopped by {signal.Signals(stopped.number).name}")
        raise
    except KeyboardInterrupt:
        _complain(f"{name}: stopped by Ctrl-C")
        return 130
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        _complain(f"{name}: {_described(error)}")
        return error.exit_code if isinstance(error, UserError) else 1


def _described(error: Exception) -> str:
    """Return an error's message. An error of the system names its file; others are not meant for users."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        named = [name for name in (error.filename, error.filename2) if name is not None]
        return f"{' → '.join(map(_path, named))}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "there is not enough memory: run it where there is more, or with fewer --workers (--debug shows where)"
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _path(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)


def _complain(text: str) -> None:
    with contextlib.suppress(BrokenPipeError, ProcessingError):  # nobody reads it
        print(text, file=sys.stderr, flush=True)


def _finish_output() -> None:
    """Give up output that cannot be written, such as to a full disk: Python would try again when it ends, and complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, ProcessingError):
        sys.stdout = None  # type: ignore[assignment]
