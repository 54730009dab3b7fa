"""nnU-Net's three folders: whether their variables name folders in which it can work."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from nnunet_glims.doctor.findings import Finding, Findings, Verdict, isolated

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ENOUGH_FREE_GIB = 20
_QUOTES = "'\"“”‘’"


def check() -> Findings[None]:
    """Yield a finding for each of the three variables, and one where two of them name the same folder."""
    for name in FOLDERS:
        yield from isolated(name, _check_variable, name)
    yield from isolated("folders", _check_are_different)


def _check_variable(name: str) -> Findings[None]:
    value = os.environ.get(name)
    if not value:
        yield Finding(name, "fail", "not set", f"export {name}=/path/to/{name}")
        return
    mistake = _mistake(value)
    if mistake is not None:
        what, meant = mistake
        yield Finding(name, "fail", f"{value}: {what}", f"export {name}={shlex.quote(meant)}")
    elif not os.path.isdir(value):
        yield _no_folder(name, value)
    elif not os.access(value, os.R_OK | os.X_OK):
        yield Finding(name, "fail", f"{value}: cannot be read", "ask for the right to read it, or use another folder")
    elif not os.access(value, os.W_OK):
        verdict: Verdict = "warn" if name == "nnUNet_raw" else "fail"
        yield Finding(
            name, verdict, f"{value}: cannot be written to", "ask for the right to write, or use another folder"
        )
    else:
        yield from _check_usable(name, value)


def _check_usable(name: str, value: str) -> Findings[None]:
    free = shutil.disk_usage(value).free / 2**30
    text = f"{value}, {free:.0f} GiB free"
    if not os.path.isabs(value):
        way_out = f"export {name}={shlex.quote(os.path.abspath(value))}"
        yield Finding(name, "warn", f"{text}: another folder wherever commands are run", way_out)
    elif free < ENOUGH_FREE_GIB:
        yield Finding(name, "warn", text, "make room: preprocessed data and checkpoints are large")
    else:
        yield Finding(name, "ok", text)


def _mistake(value: str) -> tuple[str, str] | None:
    """Return what is wrong with a variable's text, and the text that was meant; None where it may be a path as it stands."""
    if value != value.strip():
        return f"it begins or ends with blanks or a line break ({value!r})", value.strip()
    unquoted = value.strip(_QUOTES)
    if value != unquoted and not os.path.isdir(value):
        return "it has quotes in it, which are taken for a part of the name", _replaced(unquoted)
    if value.startswith("~"):
        return "only a shell knows what ~ is, and only outside of quotes", _replaced(value)
    if ("$" in value or "%" in value) and not os.path.isdir(value) and value != os.path.expandvars(value):
        return "no shell has replaced the variable in it", _replaced(value)
    several = value.split(os.pathsep)
    if len(several) > 1 and all(map(os.path.isabs, several)) and not os.path.isdir(value):
        return "it names several folders, and nnU-Net takes one", several[0]
    return None


def _replaced(value: str) -> str:
    return os.path.expandvars(os.path.expanduser(value))


def _no_folder(name: str, value: str) -> Finding:
    if os.path.lexists(value):
        what = "a link that leads nowhere" if os.path.islink(value) else "a file, not a folder"
        return Finding(name, "fail", f"{value}: this is {what}", f"export {name}=/path/to/{name}")
    return Finding(name, "fail", f"{value}: there is no such folder", f"mkdir -p {shlex.quote(value)}")


def _check_are_different() -> Findings[None]:
    named: dict[Path, str] = {}
    for name in FOLDERS:
        value = os.environ.get(name)
        if value and os.path.isdir(value):
            other = named.setdefault(Path(value).resolve(), name)
            if other != name:
                state = f"{value}: {other} is the same folder, in which nnU-Net would mix files of both kinds"
                yield Finding(name, "fail", state, f"export {name}=/path/to/{name}")
