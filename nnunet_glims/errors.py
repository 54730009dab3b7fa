"""The one exception that a command shows without a traceback."""


class UsageError(ValueError):
    """Wrong use or wrong input. The message names the thing, the value and the way out."""
