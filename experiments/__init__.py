"""Commands: `python -m experiments.NAME`, or `jaxnets NAME`; `jaxnets --help` lists them."""

import signal
import sys


def end_quietly() -> None:
    """Lets Ctrl-C end the imports of a command, which take seconds, without a traceback; `run` takes this back."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if sys.argv[:1] == ["-m"]:  # Python is about to run a module of this package
    end_quietly()
