"""Runs cases in processes of their own: a case that crashes or hangs has failed, and the next ones go on."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tests.faults.group import load_group

ROOT = Path(__file__).parents[2]
Result = dict[str, Any]  # "case", "error" (empty if the promise held), "counts", "seconds"


def run_cases(
    name: str, cases: Sequence[int], cache: Path, *, unguarded: bool = False, core: int | None = None
) -> Iterator[Result]:
    """The result of each case of a group, when it has ended.

    `cache` is the folder of compiled programs, and of the worker's output, GROUP.log. `core` is the one to run on.
    """
    group, left = load_group(name), list(cases)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(ROOT),
    }
    cache.mkdir(parents=True, exist_ok=True)
    while left:
        command = [sys.executable, "-m", "tests.faults.worker", name, *["--unguarded"] * unguarded, *map(str, left)]
        with (cache / f"{name}.log").open("a") as log:
            worker = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
            )
        if core is not None:
            os.sched_setaffinity(worker.pid, {core})
        try:
            for result in _results(worker, group.seconds):
                left.remove(result["case"])
                yield result
        finally:
            _kill(worker)
        if worker.returncode == 0:
            return


def _results(worker: subprocess.Popen[str], seconds: float) -> Iterator[Result]:
    """What a worker reports; the case at which it dies or hangs has failed."""
    assert worker.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(worker.stdout, lines.put), daemon=True).start()
    running = None
    while True:
        try:
            line = lines.get(timeout=seconds + 60 * (running is None))
        except queue.Empty:
            fault = f"took more than {seconds:g} s"
            break
        if not line:
            worker.wait()
            fault = f"the worker ended with {worker.returncode}"
            break
        message = json.loads(line)
        running = message.get("begins")
        if running is None:
            yield message
    if running is not None:
        yield {"case": running, "error": fault, "counts": {}, "seconds": seconds}
    elif worker.returncode != 0:
        raise RuntimeError(f"{fault}, before its first case: see the log")


def _read(stream: IO[str], put: Callable[[str], None]) -> None:
    for line in stream:
        put(line)
    put("")


def _kill(worker: subprocess.Popen[str]) -> None:
    """Ends a worker and what it has started."""
    if worker.poll() is None:
        os.killpg(worker.pid, 9)
    worker.wait()
