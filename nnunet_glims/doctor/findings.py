"""What a check yields, and how a check is run so that no surprise in it loses the others' findings."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from nnunet_glims.errors import UserError, listed

T = TypeVar("T")
Verdict = Literal["ok", "warn", "fail"]
LONGEST_STATE = 600
"""Largest number of characters of an error's message in a finding."""
MOST_NAMES = 5
"""Largest number of cases or files that a finding names."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        topic: what was checked.
        verdict: "ok", "warn" or "fail".
        state: what was found.
        way_out: what to do about it; empty if nothing needs to be done.
    """

    topic: str
    verdict: Verdict
    state: str
    way_out: str = ""


Findings = Generator[Finding, None, T]
"""What a check returns: it yields its findings, and may return what later checks need."""


def isolated(topic: str, check: Callable[..., Any], *arguments: Any, way_out: str = "") -> Findings[Any]:
    """Yield a check's findings. An error ends this check only, and is a finding itself.

    Args:
        topic: what the check is about.
        check: the check, or another function, which is called with the arguments.
        way_out: what to do about an error.

    Returns:
        What the check returns; None after an error.
    """
    try:
        result = check(*arguments)
        return (yield from result) if isinstance(result, Generator) else result
    except UserError as error:
        yield Finding(topic, "fail", _one_line(str(error)), way_out)
    except (Exception, SystemExit) as error:  # whatever is in the files, and whatever other packages make of it
        state = f"this could not be checked: {type(error).__name__}: {error}"
        yield Finding(topic, "fail", _one_line(state), way_out or "look at what the message names")
    return None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_STATE else f"{line[:LONGEST_STATE]}…"


def some(names: list[str]) -> str:
    """Return names for a finding: the first few of them, and how many more there are."""
    return listed(names, MOST_NAMES)
