"""Run a command of this package, or nnU-Net's training, in a process that is forked from one with all imports done.

A started Python needs seconds to import torch and nnU-Net; a forked one needs milliseconds, and is a process of its own: it can
be killed, it has its own variables and limits, and a crash ends nothing else. The process that forks must not have used
threads (torch, ITK) itself, so whoever needs these works in `in_child`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60
"""Seconds after which a command counts as one that never answers."""
MEMORY = 8 * 2**30
"""Bytes of address space that a command may have."""
THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_VISIBLE_DEVICES": "",
    "nnUNet_n_proc_DA": "0",
    "nnUNet_def_n_proc": "1",
    "nnUNet_compile": "f",
    "COLUMNS": "400",
}
"""Variables of the forking process and thereby of all commands."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: the exit code; the negative number of the signal that ended the process; None if it did not answer in time.
        text: what it printed, both streams.
        seconds: how long it ran.
        megabytes: the most memory that it held.
    """

    code: int | None
    text: str
    seconds: float
    megabytes: float

    @property
    def last_line(self) -> str:
        """The last line that was printed, without leading and trailing space."""
        return (self.text.strip().splitlines() or [""])[-1].strip()

    @property
    def is_unexplained(self) -> bool:
        """Whether the command ended with a traceback, or with the class of an error instead of a sentence."""
        return "(--debug shows where)" in self.text or "Traceback (most recent call last)" in self.text


class Running:
    """A command that was started.

    Attributes:
        pid: number of the process, which leads a session of its own.
    """

    def __init__(self, pid: int, printed: Path):
        self.pid, self._printed, self._started = pid, printed, time.monotonic()

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Wait for the end; kill the process and all it started after so many seconds."""
        while True:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            taken = time.monotonic() - self._started
            if pid or taken > seconds:
                break
            time.sleep(0.002 if taken < 1 else 0.02)
        code = os.waitstatus_to_exitcode(status) if pid else None
        if not pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            used = os.wait4(self.pid, 0)[2]
        text = self._printed.read_text(errors="replace")
        return Outcome(code, text, taken, used.ru_maxrss / 1024)

    def send(self, number: int, group: bool = False) -> None:
        """Send a signal to the process, or to all processes of its group as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def survivors(self, seconds: float = 10) -> list[int]:
        """Wait until no process of the session is left; return those that live on after so many seconds, and end them."""
        until = time.monotonic() + seconds
        while (alive := _session(self.pid)) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return alive


def _session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found.append(int(entry))
    return found


def start(arguments: Sequence[str], folder: Path, **environment: str) -> Running:
    """Start `nnunet-glims ARGUMENTS` or `nnUNetv2_train ARGUMENTS` in a folder, with these variables."""
    return fork(lambda: _run(list(arguments)), folder, environment)


def run(arguments: Sequence[str], folder: Path, seconds: float = SECONDS, **environment: str) -> Outcome:
    """Run a command to its end."""
    return start(arguments, folder, **environment).wait(seconds)


def in_child(function: Callable[[], object], folder: Path) -> None:
    """Run a function in a forked process, which may use threads; raise `RuntimeError` with its output if it fails."""
    outcome = fork(lambda: function() and 0, folder, {}).wait(600)
    if outcome.code != 0:
        raise RuntimeError(f"ended with {outcome.code}: {outcome.text[-3000:]}")


def fork(function: Callable[[], object], folder: Path, environment: dict[str, str]) -> Running:
    """Run a function in a forked process of a session of its own; its result is the exit code, None is 0."""
    descriptor, printed = tempfile.mkstemp(prefix="printed", dir=os.environ.get("RELIABILITY_PRINTED"))
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return Running(pid, Path(printed))
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["nnunet-glims"]
        os.environ.update(environment)
        os.chdir(folder)
        code = int(function() or 0)  # type: ignore[call-overload]
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        traceback.print_exc()
        code = 1
        if isinstance(error, KeyboardInterrupt):  # Python itself ends by the signal then
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    if arguments[0] == "nnUNetv2_train":
        from tests.stock import call_entry_point

        return call_entry_point(arguments, dict(os.environ))
    from nnunet_glims.cli import main

    subprocess.run = _forked_python  # type: ignore[assignment]
    return main(arguments)


_start_program = subprocess.run


def _forked_python(command: Any, *arguments: Any, **settings: Any) -> Any:
    """Stand in for `subprocess.run`, by which the doctor starts Python: its program runs in a forked process."""
    if list(command[:2]) != [sys.executable, "-c"]:
        return _start_program(command, *arguments, **settings)

    def program() -> None:
        sys.argv = ["-c", *command[3:]]
        exec(command[2], {"__name__": "__main__"})

    ended = fork(program, Path(settings.get("cwd") or "."), {}).wait()
    return subprocess.CompletedProcess(command, ended.code or 0, ended.text, ended.text)


def warm_up() -> None:
    """Import everything that commands import."""
    import nnunet_glims

    for module in pkgutil.walk_packages(nnunet_glims.__path__, "nnunet_glims."):
        if not module.name.endswith(("__main__", "found_by_nnunet")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in ("onnxruntime", "onnxscript", "nnunetv2.run.run_training", "tests.stock", "matplotlib.pyplot"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # else every forked process copies all memory when it collects garbage
