"""Commands: `python -m experiments.train`, `evaluate`, `predict`, `report`."""

import os
import sys

_TUNABLE = "glibc.malloc.hugetlb"


def _restart_with_huge_pages() -> None:
    """Starts a command over with glibc's memory in huge pages, where Linux has them.

    XLA asks for the memory of a training step anew at each step, and gets it in pages of 4 KiB: a seventh of
    ResNet-50's time on a CPU was spent there. glibc reads its settings once, before Python runs.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    # While `python -m` looks for its module, its arguments are not in place yet.
    if sys.platform != "linux" or sys.argv[:1] != ["-m"] or _TUNABLE in tunables:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


_restart_with_huge_pages()
