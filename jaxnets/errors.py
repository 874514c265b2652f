"""The one exception type for what a user can mend."""


class InputError(ValueError):
    """Bad input: one line that tells what was given, what is expected, and what to do."""
