"""What all commands share: how they fail."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

from jaxnets.errors import InputError
from jaxnets.training.checkpoint import CHECKPOINTS, load_classifier
from jaxnets.training.config import Config
from jaxnets.training.contents import TrainedClassifier
from jaxnets.training.interruption import Interrupted


def run(main: Callable[[], None]) -> None:
    """Runs a command. What a user can mend becomes one line on standard error and exit code 2; Ctrl-C exits 130."""
    logging.set_verbosity(logging.FATAL)  # orbax reports each of its steps, and each failure at length
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
    except Interrupted as interrupted:
        print(f"{interrupted}: all is saved; the same command with --resume goes on", file=sys.stderr)
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _exit(1)


def add_classifier(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of commands that use what a run has learnt."""
    parser.add_argument("workdir", type=Path, help="folder of a run of experiments.train")
    parser.add_argument(
        "--checkpoint", choices=CHECKPOINTS, default="latest", help="of the run's end (default), or of its best test"
    )
    return parser


def classifier_of(arguments: argparse.Namespace) -> TrainedClassifier:
    """What the run has learnt."""
    config = arguments.workdir / "config.json"
    if os.path.exists(config) and Config.read(config).dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    return load_classifier(arguments.workdir, arguments.checkpoint)


def _fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    _exit(2)


def _exit(code: int) -> None:
    if jax.distributed.is_initialized():
        # Otherwise JAX would wait here for minutes for the other processes to end as well.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
