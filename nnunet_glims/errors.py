"""The exceptions that commands show as a message, without a traceback, and how messages quote texts and names."""

from collections.abc import Sequence


class UserError(Exception):
    """An error whose message is for the user: it names the thing, the value and what to do.

    Attributes:
        exit_code: exit code of the command.
    """

    exit_code = 1


class UsageError(UserError, ValueError):
    """An error in what the user typed or wrote: options, a YAML file, an override, dataset.json, a name that is taken."""

    exit_code = 2


class ProcessingError(UserError, RuntimeError):
    """A correct request that could not be carried out, because of damaged data, a full disk, or a killed process."""


def cut(text: str, most: int = 80) -> str:
    """Return a text as a message quotes it: at most so many characters, and none that a terminal would act on."""
    shortened = text if len(text) <= most else f"{text[:most]}…"
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in shortened)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names as a message lists them: the first few, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
