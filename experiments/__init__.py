"""Commands: `python -m experiments.train`, `evaluate`, `predict`, `report`."""

import gc
import os
import sys

# One heap for all threads, from which nothing goes back to the system.
_TUNABLES = {
    "arena_max": 1,
    "mmap_max": 0,
    "trim_threshold": 2**34,
    "top_pad": 2**26,
}
# New objects between two looks for garbage: importing and tracing make 400,000, nearly all of which stay.
_OBJECTS_A_COLLECTION = 500_000


def _restart_with_kept_memory() -> None:
    """Starts a command over with a glibc that keeps its memory.

    XLA asks for the memory of a training step anew at each step, and the system hands it out page by page, each filled
    with zeros: a sixth of ResNet-50's time on a CPU was spent there. glibc reads its settings once, before Python runs.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    # A GPU's memory is not glibc's, and its host would rather have a heap for each thread.
    if sys.platform != "linux" or "glibc.malloc" in given or os.path.exists("/dev/nvidiactl"):
        return
    settings = [f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items()]
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (given, *settings)))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _prepare_command() -> None:
    if sys.argv[:1] == ["-m"]:  # As it is while `python -m` looks for its module.
        _restart_with_kept_memory()
        gc.set_threshold(_OBJECTS_A_COLLECTION)


_prepare_command()
