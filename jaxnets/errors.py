"""The one exception type for what a user can mend, and the first line of others."""


class InputError(ValueError):
    """Bad input: one line that tells what was given, what is expected, and what to do."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened."""
    return next(iter(str(error).splitlines()), "")[:200]
