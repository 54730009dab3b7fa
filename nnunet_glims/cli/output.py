"""What commands print: readable in every encoding, and harmless for the terminal.

Names of files and cases may hold escape sequences, with which a terminal hides lines, moves the cursor or runs commands. Text
is therefore shown with its control characters written out. Characters that the output's encoding lacks are replaced by
similar ones in ASCII, or written out as well. `main` puts `Printed` before the standard streams, so that this holds for
everything that is printed; tables, colours and progress bars need escape sequences and are drawn by `new_console`, which
treats the texts in them in the same way.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from nnunet_glims.errors import ProcessingError

if TYPE_CHECKING:
    from rich.console import Console

_HARMFUL = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")
"""Control characters other than tabs and line breaks, and those that change the direction of text."""
_SIMILAR = {
    **{"×": "x", "·": "*", "±": "+/-", "→": "->", "…": "...", "–": "-", "—": "-", "−": "-", "≤": "<=", "≥": ">="},
    **{"²": "^2", "³": "^3", "µ": "u", "“": '"', "”": '"', "‘": "'", "’": "'", "≈": "~", "•": "*", "✓": "ok", "█": "#"},
    **dict.fromkeys("─━╸╺", "-"),
    **{"│": "|", "┃": "|", "\N{NO-BREAK SPACE}": " ", "\N{THIN SPACE}": " ", "\N{NARROW NO-BREAK SPACE}": " "},
}
"""Characters of this package's texts -> what stands for them where the encoding lacks them."""
_ERRORS = "nnunet_glims.similar"


def _similar(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_written_out, error.object[error.start : error.end])), error.end


def _written_out(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # Python's sign for a byte of a file name that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return _SIMILAR.get(character) or character.encode("ascii", "backslashreplace").decode()


codecs.register_error(_ERRORS, _similar)


def visible(text: str) -> str:
    """Return a text with its control characters written out, as in \\x1b, except for tabs and line breaks."""
    return _HARMFUL.sub(lambda found: ascii(found[0])[1:-1], text)


def encodable(text: str, encoding: str | None) -> str:
    """Return a text with characters that an encoding has; None stands for UTF-8."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, _ERRORS).decode(encoding)


class Drawn:
    """A stream whose text may have escape sequences, because this program has put them there.

    Raises:
        ProcessingError: when written to: the disk of the output is full, or there is another error of the system. A reader
            that has ended, such as `head`, is a BrokenPipeError.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text with characters that the encoding has; return the text's length."""
        with _named_errors():
            self._stream.write(encodable(text, getattr(self._stream, "encoding", None)))
        return len(text)

    def flush(self) -> None:
        """Write what is still in the stream's buffer."""
        with _named_errors():
            self._stream.flush()


class Printed(Drawn):
    """A stream whose control characters are written out.

    Attributes:
        drawn: the same stream for text that may have escape sequences.
    """

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self.drawn = Drawn(stream)

    def write(self, text: str) -> int:
        """Write a text with visible characters that the encoding has; return the text's length."""
        super().write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines one after the other."""
        for line in lines:
            self.write(line)


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ProcessingError(f"the output cannot be written: {error.strerror or error}") from None


@contextmanager
def printed_streams() -> Iterator[None]:
    """Within this context, everything that is printed to the standard streams is readable and harmless.

    A stream that was set to None within the context stays so.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = ((None if stream is None else Printed(stream)) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = (
            None if now is None else stream for now, stream in zip((sys.stdout, sys.stderr), before, strict=True)
        )  # type: ignore[assignment]


def new_console(soft_wrap: bool = False) -> Console:
    """Return the console on which a command draws tables and progress; texts are shown as they are, without markup.

    Args:
        soft_wrap: whether lines are left as long as they are.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Drawing(Console):
        """A console that writes out the control characters in texts, and none of its own."""

        def render_str(self, text, **options):  # before widths are measured
            return super().render_str(encodable(visible(text), self.encoding), **options)

        def render(self, renderable, options=None):
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    stream = getattr(sys.stdout, "drawn", sys.stdout)
    return Drawing(file=stream, markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)
