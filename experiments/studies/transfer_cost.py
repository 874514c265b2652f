"""Measures the cost of the three ways of transfer learning: python -m experiments.studies.transfer_cost.

The claim: `head`, and `partial` by default, take at most half of the time per step and optimiser memory of `full`.
"""

import json
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arguments import parser_of
from experiments.command import run
from jaxnets.data.pipeline import Batch
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.models.initialization import declaration
from jaxnets.models.registry import create_model
from jaxnets.training.parallel import Parallel
from jaxnets.training.progress import counting
from jaxnets.training.recipes import RECIPES
from jaxnets.training.state import create_state
from jaxnets.training.step import train_step
from jaxnets.transfer import HeadOnTrunk, frozen_modules, make_head, with_frozen_norms

ROUNDS = 5
_CLASSES = 10


class Way:
    """One way of transfer, with a state and a batch to take steps."""

    def __init__(self, arch: str, image_size: int, batch_size: int, transfer: str, train_from: str | None) -> None:
        recipe = replace(RECIPES["finetune"], image_size=image_size, batch_size=batch_size)
        network = create_model(arch, num_classes=_CLASSES, dtype=jnp.float32)
        optimizer = recipe.make_optimizer(recipe.schedule_of(1000, 1000 * batch_size))
        params = declaration(network, image_size).shapes["params"]
        frozen = frozen_modules(network, transfer, train_from, params)
        model = HeadOnTrunk(network, make_head(network)) if transfer == "head" else with_frozen_norms(network, frozen)
        self._state = create_state(network, optimizer, 0, image_size, frozen=frozen)
        self._step = Parallel.choose("jit").wrap(
            partial(
                train_step,
                model=model,
                optimizer=optimizer,
                preprocessing=Preprocessing(image_size, image_size),
                recipe=recipe,
            ),
            donate=True,
        )
        pixels = np.random.default_rng(0).integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
        labels = np.arange(batch_size, dtype=np.int32) % _CLASSES
        self._batch = jax.device_put(Batch(pixels, labels, np.ones(batch_size, bool)))
        self.optimizer_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._state.opt_state))
        self.trained = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))

    def measure_step(self) -> float:
        """Runs one step and returns its seconds."""
        started = time.perf_counter()
        self._state, sums = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, sums))
        return time.perf_counter() - started


def main() -> None:
    """Measures the time per step and the optimiser memory of full, partial and head, in turns."""
    parser = parser_of("studies.transfer_cost", main.__doc__)
    parser.add_argument("--arch", default="resnet50", help="network (default: resnet50)")
    parser.add_argument("--image-size", type=int, default=224, help="image size in pixels (default: 224)")
    parser.add_argument("--batch-size", type=int, default=8, help="images per step (default: 8)")
    parser.add_argument("--train-from", metavar="STAGE", help="first stage that partial trains (default: its own)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    make: Any = partial(Way, arguments.arch, arguments.image_size, arguments.batch_size)
    ways = {"full": make("full", None), "partial": make("partial", arguments.train_from), "head": make("head", None)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with counting("measuring", len(ways) * (ROUNDS + 1)) as (done, _):
        for number in range(ROUNDS + 1):
            for index, (name, way) in enumerate(ways.items()):
                seconds[name].append(way.measure_step())
                done(number * len(ways) + index + 1)
    result: dict[str, Any] = {
        "arch": arguments.arch,
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
        "device": jax.devices()[0].device_kind,
    }
    for name, way in ways.items():
        # The first round compiles. Conditions are the same within a round only, so ratios are computed per round.
        ratios = [this / full for this, full in zip(seconds[name][1:], seconds["full"][1:], strict=True)]
        result[name] = {
            "seconds_a_step": statistics.median(seconds[name][1:]),
            "time_ratio": statistics.median(ratios),
            "time_ratio_spread": [min(ratios), max(ratios)],
            "optimizer_bytes": way.optimizer_bytes,
            "memory_ratio": way.optimizer_bytes / ways["full"].optimizer_bytes,
            "trained_parameters": way.trained,
        }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{arguments.arch}, {arguments.image_size} px, batches of {arguments.batch_size}, {result['device']}")
    print(f"{'':10}{'s/step':>10}{'of full':>10}{'optimiser MB':>15}{'of full':>10}{'trained parameters':>21}")
    for name in ways:
        row = result[name]
        print(
            f"{name:10}{row['seconds_a_step']:10.3f}{row['time_ratio']:10.2f}{row['optimizer_bytes'] / 1e6:15.2f}"
            f"{row['memory_ratio']:10.2f}{row['trained_parameters']:21,}"
        )


if __name__ == "__main__":
    run(main)
