"""The exceptions that a command shows without a traceback."""


class UserError(Exception):
    """An error whose message is for the user. It names the thing, the value and the way out.

    Attributes:
        exit_code: what the command ends with.
    """

    exit_code = 1


class UsageError(UserError, ValueError):
    """Wrong use: what the user typed or wrote (options, a YAML file, an override, dataset.json, a name that is taken)."""

    exit_code = 2


class ProcessingError(UserError, RuntimeError):
    """What was asked is right and could not be done: damaged data, a full disk, a killed process."""
