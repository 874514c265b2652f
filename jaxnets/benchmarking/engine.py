"""What each part of the CPU engine is worth: python -m jaxnets.benchmarking.engine ARCH --image-size S --batch-size N.

One process compiles the step with the whole engine, and once more without each part; then they take turns. Prints, for
each part, the quartiles of the time without it over the time with it, and the ratio of the shortest times: by the
clock, and by the processor's cores, which other programs disturb less.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxnets.benchmarking.worker import MODES, Job, make_step
from jaxnets.errors import InputError
from jaxnets.ops import keep_memory
from jaxnets.ops.cpu import availability, calls

# These two are set once in a process.
PARTS = tuple(part for part in availability.PARTS if part not in ("all", "waiting_threads", "placed_threads"))
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
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}; expected at least 2")
    keep_memory()
    try:
        job = Job(arguments.arch, arguments.image_size, arguments.batch_size, arguments.mode)
        ratios = measure(job, arguments.parts, arguments.rounds)
    except InputError as error:
        parser.error(str(error))
    about = {"arch": job.arch, "image_size": job.image_size, "batch_size": job.batch_size, "mode": job.mode}
    print(json.dumps(about | {"without_over_with": ratios}))


def measure(job: Job, parts: Sequence[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """For each part and clock the quartiles of time without / time with, and the ratio of the shortest times."""
    turns = {part: _turn(job, part) for part in ("", *parts)}
    steps = max(1, round(_SECONDS_A_TURN / min(turns[""](1)["clock"] for _ in range(3))))
    times: dict[str, list[dict[str, float]]] = {part: [] for part in turns}
    for number in range(rounds):
        for part in random.Random(number).sample(list(turns), len(turns)):
            times[part].append(turns[part](steps))

    def quartiles(part: str, clock: str) -> list[float]:
        ratios = [without[clock] / whole[clock] for without, whole in zip(times[part], times[""], strict=True)]
        best = min(turn[clock] for turn in times[part]) / min(turn[clock] for turn in times[""])
        return [round(ratio, 3) for ratio in (*statistics.quantiles(ratios, n=4), best)]

    return {part: {clock: quartiles(part, clock) for clock in ("clock", "cores")} for part in parts}


def _turn(job: Job, without: str) -> Callable[[int], dict[str, float]]:
    """A function that takes steps without a part, and returns the seconds of one, by the clock and of the cores."""
    os.environ[availability.SWITCH] = without
    availability.forget()
    jax.clear_caches()
    step, plans = _compiled(job)

    def turn(steps: int) -> dict[str, float]:
        with calls.using(plans):
            clock, cores = time.perf_counter(), time.process_time()
            for _ in range(steps):
                jax.block_until_ready(step())
            ends = time.perf_counter(), time.process_time()
        return {"clock": (ends[0] - clock) / steps, "cores": (ends[1] - cores) / steps}

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
