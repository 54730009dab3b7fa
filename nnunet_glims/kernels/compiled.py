"""The library of the C kernels (folder c): compiled for this processor on first use, and kept in a cache folder.

The name of a library has the checksum of its content, which is compared before it is loaded: a damaged library is compiled
again. Only libraries are loaded that belong to this user or to root and that nobody else can change. Whatever goes wrong,
there is one warning, and networks compute with PyTorch's own operations.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from nnunet_glims.errors import UserError
from nnunet_glims.files import new_file, working_folder

SOURCES = Path(__file__).with_name("c")
PRECISIONS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
"""Precision of the tensors -> further options of the compiler. Gradients exist in float32 only."""
OPTIONS = ("-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-fno-trapping-math", "-shared", "-fPIC")
MOST_SECONDS = 900
"""Time after which a compiler counts as hanging."""
LONGEST_REASON = 300
"""Largest number of characters of a compiler's message in a warning."""
WITHOUT_BFLOAT16 = "this processor has no instructions for bfloat16"
"""Message of lanes.h, which ends the compilation for bfloat16 on such a processor."""

_OTHER_COMPILER = "set the variable CC to a C compiler with OpenMP that works here, or unset it"
_OTHER_FOLDER = "set XDG_CACHE_HOME to a folder that belongs to this user and to which only this user can write"
_TRIAL = "import ctypes, sys; [ctypes.CDLL(file, ctypes.RTLD_GLOBAL) for file in sys.argv[1:]]"


class Unavailable(Exception):
    """There are no C kernels; the message says why.

    Attributes:
        way_out: what to do about it.
        is_usual: whether this is usual on such a machine, so that nobody needs to be warned.
    """

    def __init__(self, reason: str, way_out: str, is_usual: bool = False):
        super().__init__(reason)
        self.way_out = way_out
        self.is_usual = is_usual


def library(precision: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """Return the compiled kernels for tensors of this precision; None where there are none.

    There are none without a C compiler that works, without a private folder to keep the library in, and for bfloat16 on
    processors without instructions for it.
    """
    found = _loaded(precision)
    return None if isinstance(found, Unavailable) else found


def problem() -> Unavailable | None:
    """Return why there are no C kernels for float32 on this machine; None where there are."""
    found = _loaded(torch.float32)
    return found if isinstance(found, Unavailable) else None


def compiler() -> list[str]:
    """Return the command of the C compiler: the variable CC where it is set, else cc, gcc or clang.

    Raises:
        Unavailable: CC is no command, or no compiler is found.
    """
    value = os.environ.get("CC", "")
    try:
        named = shlex.split(value)
    except ValueError as error:
        raise Unavailable(f"the variable CC is {value!r}, which is no command ({error})", _OTHER_COMPILER) from None
    if named and shutil.which(named[0]) is None:
        raise Unavailable(f"the variable CC is {value!r}, and there is no such program", _OTHER_COMPILER)
    for command in [named] if named else (["cc"], ["gcc"], ["clang"]):
        if shutil.which(command[0]):
            return command
    raise Unavailable("there is no C compiler", "install gcc or clang, or set CC", is_usual=True)


def cache_folder() -> Path:
    """Return the folder in which compiled kernels are kept: nnunet_glims in XDG_CACHE_HOME or in ~/.cache.

    Raises:
        Unavailable: the variable is not set, and this user has no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        above = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor an entry for this user's number
        raise Unavailable("this user has no home folder to keep compiled kernels in", _OTHER_FOLDER) from None
    return above / "nnunet_glims"


@cache
def _loaded(precision: torch.dtype) -> ctypes.CDLL | Unavailable:
    if precision not in PRECISIONS:
        return Unavailable(f"there are none for {precision}", "", is_usual=True)
    if precision != torch.float32 and isinstance(found := _loaded(torch.float32), Unavailable):
        return found  # for the same reason, of which was warned
    try:
        return _load(precision)
    except Unavailable as error:
        reason = error
    except UserError as error:
        reason = Unavailable(str(error), _OTHER_FOLDER)
    except Exception as error:  # networks must run whatever the disk, the environment and the compiler do
        reason = Unavailable(f"{type(error).__name__}: {error}", _OTHER_COMPILER)
    if not reason.is_usual:
        _warn(
            f"The C kernels cannot be used: {reason}. Now PyTorch's own operations compute the same, more slowly "
            f"(NNUNET_GLIMS_KERNELS=eager selects them without this warning). To have the kernels, {reason.way_out}"
        )
    return reason


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _load(precision: torch.dtype) -> ctypes.CDLL:
    """Load the library from the cache folder; compile it where there is none that is whole and private."""
    command, options, threads = compiler(), [*OPTIONS, *PRECISIONS[precision]], _openmp()
    ingredients = [*(file.read_bytes() for file in sorted(SOURCES.glob("*.[ch]"))), _processor()]
    ingredients += map(os.fsencode, (*command, *options, *threads))
    key = hashlib.sha256(b"\n".join(ingredients)).hexdigest()[:20]
    name = f"kernels-{key}"
    folder = _private(cache_folder())
    for file in sorted(folder.glob(f"{name}-*.so")):
        content = _sound_content(file, name)
        if content is not None:
            return _opened(file, content)
        _warn(f"{file}: this is damaged, or others can change it. It is not loaded: the kernels are compiled again")
        _remove(file)
    with working_folder(folder / name) as scratch:
        built = scratch / "kernels.so"
        _compile([*command, *options, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(built), *threads, "-lm"])
        _try(built, threads)
        content = built.read_bytes()
    file = folder / _file_name(name, content)
    with new_file(file) as unfinished:
        unfinished.write_bytes(content)
        unfinished.chmod(0o600)
    return _opened(file, content)


def _opened(file: Path, content: bytes) -> ctypes.CDLL:
    """Load a library from memory that holds its content, where the system can do that, else from its file.

    A process ends when the file of a library that it has loaded is cut off; memory of its own cannot be.
    """
    try:
        # The descriptor stays open: the loader would take the next library with the same descriptor's path for this one.
        with open(os.memfd_create("nnunet_glims"), "wb", closefd=False) as memory:
            memory.write(content)
            memory.flush()
            return ctypes.CDLL(f"/proc/self/fd/{memory.fileno()}")
    except (AttributeError, OSError):  # not Linux, or a system without /proc or without executable memory
        return ctypes.CDLL(str(file))


def _file_name(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()}.so"


def _private(folder: Path) -> Path:
    """Return the folder after making sure that only this user or root can write to it; it is made where it is missing.

    What is in a folder of this user to which others could write is removed, because anybody may have put it there.

    Raises:
        Unavailable: the folder belongs to another user, or cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise Unavailable(f"the folder {folder} cannot be used ({error.strerror})", _OTHER_FOLDER) from None
    if not _is_own(status):
        raise Unavailable(f"the folder {folder} belongs to another user", _OTHER_FOLDER)
    if _others_can_write(status):
        if status.st_uid != os.getuid():
            raise Unavailable(f"others can write to the folder {folder}", _OTHER_FOLDER)
        folder.chmod(stat.S_IMODE(status.st_mode) & ~0o022)
        if kept := list(folder.glob("kernels-*.so")):
            _warn(f"{folder}: others could write to this folder. The kernels in it are not loaded, but compiled again")
        for file in kept:
            _remove(file)
    return folder


def _is_own(status: os.stat_result) -> bool:
    """Return whether a file belongs to this user or to root. Windows has no such owners; its profiles are private."""
    return not hasattr(os, "getuid") or status.st_uid in (os.getuid(), 0)


def _others_can_write(status: os.stat_result) -> bool:
    return hasattr(os, "getuid") and bool(status.st_mode & 0o022)


def _sound_content(file: Path, name: str) -> bytes | None:
    """Return the content of a library; None if it is not what was written, or others than this user and root can change it."""
    try:
        with file.open("rb") as opened:
            status, content = os.fstat(opened.fileno()), opened.read()
    except OSError:
        return None
    is_sound = _is_own(status) and not _others_can_write(status) and file.name == _file_name(name, content)
    return content if is_sound else None


def _remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _compile(command: Sequence[str]) -> None:
    """Run the compiler; raise `Unavailable` with its last line where it fails."""
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"the compiler {command[0]} has not ended in {MOST_SECONDS} seconds", _OTHER_COMPILER
        ) from None
    except OSError as error:
        raise Unavailable(f"the compiler {command[0]} cannot be run ({error.strerror})", _OTHER_COMPILER) from None
    output = (result.stderr or result.stdout).decode(errors="replace").strip()
    if result.returncode:
        raise Unavailable(
            f"the compiler {command[0]} fails: {_main_line(output) or f'exit code {result.returncode}'}",
            _OTHER_COMPILER,
            is_usual=WITHOUT_BFLOAT16 in output,
        )


def _main_line(output: str) -> str:
    """Return the first line of a compiler's output that tells of an error; else the last line."""
    lines = output.splitlines() or [""]
    return next((line for line in lines if "error" in line.lower()), lines[-1]).strip()[:LONGEST_REASON]


def _try(built: Path, threads: Sequence[str]) -> None:
    """Load the library in a process of its own, which it may end; raise `Unavailable` where this fails."""
    if not built.is_file():
        raise Unavailable("the compiler (CC) has written no library", _OTHER_COMPILER)
    libraries = [file for file in threads if not file.startswith("-")]
    command = [sys.executable, "-I", "-S", "-c", _TRIAL, *libraries, str(built)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=MOST_SECONDS)
    if result.returncode:
        reason = _main_line(result.stderr.decode(errors="replace"))
        raise Unavailable(f"the compiler (CC) has written a library that cannot be loaded: {reason}", _OTHER_COMPILER)


def _processor() -> bytes:
    """Describe the processor, which -march=native depends on: machines of several kinds may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))


def _openmp() -> list[str]:
    """Return linker options for the OpenMP library that torch includes. With another library, two sets of threads compete."""
    brought = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    return ["-Wl,--as-needed", *map(str, brought)] if brought else []
