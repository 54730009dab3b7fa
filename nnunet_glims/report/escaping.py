"""Texts from files and users as Markdown and LaTeX show them: as they are, and never as a command."""

from __future__ import annotations

import re

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$", "–": "--", "{": r"\{", "}": r"\}",
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
"""Brackets and asterisks stand in braces, because they would be arguments of the end of the line above."""


def latex(text: str) -> str:
    """Return a text as LaTeX, on one line."""
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def markdown(text: str) -> str:
    """Return a text as Markdown, on one line, that shows neither HTML nor links nor emphasis."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"([\\`*\[\]|~])", r"\\\1", escaped)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # inside of words, underscores are letters


def one_line(text: str) -> str:
    """Return a text without line breaks, and with a question mark for letters that cannot be printed."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))
