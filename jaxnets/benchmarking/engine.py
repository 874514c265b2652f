"""What each part of the CPU engine is worth: python -m jaxnets.benchmarking.engine ARCH --image-size S --batch-size N.

One process compiles the step with the whole engine, and once more without each part; then they take turns. Prints, for
each part, the median of the ratio of images a second with it to those without it, and its quartiles.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxnets.benchmarking.worker import MODES, Job, make_step
from jaxnets.ops import keep_memory
from jaxnets.ops.cpu import availability, calls

PARTS = tuple(part for part in availability.PARTS if part != "all")
_SECONDS_A_TURN = 0.2


def main() -> None:
    """Measures, and prints a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m jaxnets.benchmarking.engine", description=main.__doc__)
    parser.add_argument("arch")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--mode", choices=MODES, default="train")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    keep_memory()
    job = Job(arguments.arch, arguments.image_size, arguments.batch_size, arguments.mode)
    print(
        json.dumps(
            {"arch": job.arch, "image_size": job.image_size, "batch_size": job.batch_size, "mode": job.mode}
            | {"with_over_without": measure(job, arguments.parts, arguments.rounds)}
        )
    )


def measure(job: Job, parts: tuple[str, ...], rounds: int) -> dict[str, list[float]]:
    """For each part the lower quartile, the median and the upper quartile of with / without, in images a second."""
    turns = {part: _turn(job, part) for part in ("", *parts)}
    steps = max(1, round(_SECONDS_A_TURN / min(turns[""](1) for _ in range(3))))
    seconds: dict[str, list[float]] = {part: [] for part in turns}
    for number in range(rounds):
        for part in random.Random(number).sample(list(turns), len(turns)):
            seconds[part].append(turns[part](steps))
    ratios = {part: [a / b for a, b in zip(seconds[part], seconds[""], strict=True)] for part in parts}
    return {part: [round(q, 3) for q in statistics.quantiles(values, n=4)] for part, values in ratios.items()}


def _turn(job: Job, without: str) -> Callable[[int], float]:
    """A function that takes steps without a part, and returns the seconds of one."""
    os.environ[availability.SWITCH] = without
    availability.forget()
    jax.clear_caches()
    step, plans = _compiled(job)

    def turn(steps: int) -> float:
        with calls.using(plans):
            started = time.perf_counter()
            for _ in range(steps):
                jax.block_until_ready(step())
            return (time.perf_counter() - started) / steps

    for _ in range(2):
        turn(1)
    return turn


def _compiled(job: Job) -> tuple[Callable[[], Any], calls.Plans]:
    plans = calls.Plans()
    with calls.using(plans):
        step, _, _ = make_step(job)
        jax.block_until_ready(step())
    return step, plans


if __name__ == "__main__":
    main()
