"""How much another program slows a step down: python -m jaxnets.benchmarking.busy ARCH --image-size S --batch-size N.

The step takes turns alone and beside processes that keep one core each busy. Prints images per second of both, and the
median of the ratios with their range.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxnets.benchmarking.machine import steps_per_second
from jaxnets.benchmarking.worker import MODES, Job, make_step
from jaxnets.errors import InputError
from jaxnets.ops import keep_memory

_WARM_UP_STEPS = 3


def main() -> None:
    """Measures, and prints a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m jaxnets.benchmarking.busy", description=main.__doc__)
    parser.add_argument("arch")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--mode", choices=MODES, default="train")
    parser.add_argument("--processes", type=int, default=1, help="processes that are busy (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name in ("processes", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}; expected at least 1")
    keep_memory()
    try:
        job = Job(arguments.arch, arguments.image_size, arguments.batch_size, arguments.mode)
        print(json.dumps(measure(job, arguments.processes, arguments.rounds)))
    except InputError as error:
        parser.error(str(error))


def measure(job: Job, processes: int, rounds: int) -> dict[str, Any]:
    """Images per second alone and beside busy processes, and the ratio of the second to the first."""
    step, _, _ = make_step(job)
    for _ in range(_WARM_UP_STEPS):
        step()
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(job.batch_size * steps_per_second(step, job.seconds))
        with _busy(processes):
            beside.append(job.batch_size * steps_per_second(step, job.seconds))
    ratios = [second / first for first, second in zip(alone, beside, strict=True)]
    return {
        "arch": job.arch,
        "image_size": job.image_size,
        "batch_size": job.batch_size,
        "mode": job.mode,
        "busy_processes": processes,
        "alone_images_per_second": statistics.median(alone),
        "beside_images_per_second": statistics.median(beside),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


@contextmanager
def _busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
