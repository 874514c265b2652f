"""What all commands share: how they fail."""

import os
import sys
from collections.abc import Callable

from absl import logging

from jaxnets.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Runs a command. What a user can mend becomes one line on standard error and exit code 2; Ctrl-C exits 130."""
    logging.set_verbosity(logging.ERROR)  # orbax reports each of its steps
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output has gone, as in `predict ... | head`; nothing is left to be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}; is the disk full, or the folder not yours?")
    except MemoryError:
        _fail("out of memory; try a smaller --batch-size or --image-size")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
