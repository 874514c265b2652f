"""Running a command: its streams, JAX, and errors as one line with an exit code."""

import errno
import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import logging

from jaxnets.devices import devices
from jaxnets.errors import InputError, first_line
from jaxnets.ops import keep_memory
from jaxnets.training.interruption import Interrupted
from jaxnets.weights.download import cache_folder

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or give another folder"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check the permissions, or give another folder"),
}
# JAX's checks that would refuse code which relies on broadcasting, on type promotion or on implicit transfers.
_CHECKS = {
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_transfer_guard": "allow",
    "jax_debug_key_reuse": False,
}
# Without process 0, JAX ends the others at once, with a page of its own.
_SECONDS_OF_PROCESS_0 = 2.0


def run(main: Callable[[], None]) -> None:
    """Runs a command. What a user can mend becomes one line on standard error and exit code 2; Ctrl-C exits 130."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _print_unraisable
    logging.set_verbosity(logging.FATAL)  # orbax reports each of its steps, and each failure at length
    _open_standard_streams()
    try:
        _configure_jax()
        keep_memory()
        main()
        sys.stdout.flush()
    except InputError as error:
        _fail(with_options(str(error), sys.argv[1:]))
    except BrokenPipeError:
        # The reader has closed the output, as in `predict ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        advice = _ADVICE.get(error.errno or 0)
        _fail(f"{place}{error.strerror or error}" + (f"; {advice}" if advice else ""))
    except MemoryError:
        _fail("out of memory; try a smaller --batch-size or --image-size")
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            _fail(f"out of memory ({first_line(error)}); try a smaller --batch-size, or end other programs")
        if isinstance(error, RuntimeError) and "home directory" in str(error):
            _fail("the home folder, which ~ stands for, is unknown; set HOME, or give paths without ~")
        _fail_without_devices()
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _exit(1)


def with_options(message: str, arguments: Sequence[str]) -> str:
    """The message with the settings that were given as options named so: "--batch-size 0" for "batch_size=0"."""
    for flag in sorted({argument.partition("=")[0] for argument in arguments if argument.startswith("--")}):
        name = "learning_rate" if flag == "--lr" else flag[2:].replace("-", "_")
        # Not within a path, and not where the value is none that one types.
        message = re.sub(rf"(?<![^ (]){re.escape(name)}=(?!True|False|None|\()", f"{flag} ", message)
    return message


def _print_unraisable(error: "sys.UnraisableHookArgs") -> None:
    """Prints an error that no code can catch, but not those of arrays after the first one that can't be written."""
    if str(error.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(error)


def _open_standard_streams() -> None:
    """Opens the null device for streams that are closed, and lets names of any bytes be printed.

    Otherwise the next file that is opened would get the number of the stream, and what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _configure_jax() -> None:
    """Sets what jaxnets needs of JAX.

    JAX keeps what it compiles for the next start, in jaxnets' cache unless JAX is configured to use another;
    JAX_ENABLE_COMPILATION_CACHE=0 turns it off. The environment's checks of how JAX is used are meant for other code,
    and are turned off.
    """
    for name, value in _CHECKS.items():
        jax.config.update(name, value)
    if getattr(jax.config, "jax_disable_jit", False):
        raise InputError("JAX_DISABLE_JIT is set, but jaxnets compiles its steps; unset it")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = _cache_of_programs()
        if folder is not None:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _cache_of_programs() -> Path | None:
    """The folder of compiled programs; None, with a warning, if it can't be written."""
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = f"{folder} can't be written"
    except (InputError, OSError) as error:
        reason = str(error)
    print(f"warning: compiled programs are not kept for the next start: {reason}", file=sys.stderr)
    return None


def _fail_without_devices() -> None:
    """Fails with the reason if JAX has no device, which many errors may be the consequence of."""
    try:
        devices()
    except InputError as error:
        _fail(str(error))


def _fail(line: str) -> None:
    # Paths may hold line breaks.
    print(f"error: {' '.join(line.splitlines())}", file=sys.stderr)
    _exit(2)


def _exit(code: int) -> None:
    if jax.distributed.is_initialized():
        # Otherwise JAX would wait here for minutes for the other processes to end as well.
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(_SECONDS_OF_PROCESS_0)
        os._exit(code)
    sys.exit(code)
