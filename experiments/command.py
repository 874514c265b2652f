"""What all commands share: how they fail."""

import sys
from collections.abc import Callable

from absl import logging

from jaxnets.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Runs a command. A user's mistake becomes one line on standard error and exit code 2; Ctrl-C exits with 130."""
    logging.set_verbosity(logging.ERROR)  # orbax reports each of its steps
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
