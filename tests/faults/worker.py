"""Runs cases of a group in this process: python -m tests.faults.worker GROUP [--unguarded] CASE...

Prints one line of JSON when a case begins, and one when it has ended.
"""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.faults.group import Group, load_group


def main() -> None:
    # A shell may have started this in its background, where Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name, *words = sys.argv[1:]
    unguarded = "--unguarded" in words
    # Nothing that a case prints may come between the lines.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    group = load_group(name)
    with group.unguarded() if unguarded else nullcontext():
        for word in words:
            if word.isdecimal():
                print(json.dumps({"begins": int(word)}), file=lines, flush=True)
                print(json.dumps(_ended(group, int(word))), file=lines, flush=True)


def _ended(group: Group, case: int) -> dict[str, Any]:
    started, error, counts = time.perf_counter(), "", {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            counts = dict(group.run(case, Path(folder)))
        except BaseException as fault:
            traceback.print_exc()
            error = f"{type(fault).__name__}: {fault}"[:2000]
            if isinstance(fault, KeyboardInterrupt):
                raise
    return {"case": case, "error": error, "counts": counts, "seconds": round(time.perf_counter() - started, 3)}


if __name__ == "__main__":
    main()
