"""The learning-rate finder: a short training in which the learning rate grows, and the rate that it suggests."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnets.data.pipeline import to_device
from jaxnets.data.sources import Dataset
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.custom import Custom
from jaxnets.training.parallel import Parallel, memory_explained
from jaxnets.training.progress import Progress, counting
from jaxnets.training.setup import Setup, set_up
from jaxnets.training.start import origin_of, saved_or_new
from jaxnets.training.state import TrainState

RULE = "a tenth of the rate of the smallest loss"
_DIVERGED = 4.0
_MEMORY = 0.9


@dataclass(frozen=True)
class LearningRates:
    """The losses of a training whose learning rate grows, step by step, and the rate that they suggest.

    `rates` and `losses` [S] end with the first loss that is not finite, or whose moving average `smoothed` [S] exceeds
    four times its minimum. `suggestion` is None if the losses never fell. `rule` says how it follows from them.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None
    rule: str = RULE


def find_learning_rate(
    config: Config,
    dataset: Dataset | None = None,
    *,
    parallel: Parallel | None = None,
    steps: int = 100,
    lowest: float = 1e-6,
    highest: float = 10.0,
) -> LearningRates:
    """Trains for up to `steps` steps with learning rates from `lowest` to `highest`, each the same factor higher.

    It takes the steps of `train(config, ...)` with the optimiser of the recipe, in which the growing rate replaces the
    schedule; all is trained that the run trains after `head_epochs`. It writes nothing. `dataset` takes the place of
    the data set that `config` names. Raises InputError for invalid `steps`, `lowest` or `highest`, and for what
    `train` would refuse.
    """
    if not (0 < lowest < highest < math.inf):
        raise InputError(f"learning rates from {lowest:g} to {highest:g}; expected 0 < lowest < highest")
    if steps < 10:
        raise InputError(f"steps={steps}; expected at least 10 to see a curve")
    parallel, recipe = parallel or Parallel.choose(), config.recipe
    rates = np.geomspace(lowest, highest, steps)
    optimizer = recipe.make_optimizer(
        lambda step: lowest * (highest / lowest) ** (jnp.asarray(step, float) / (steps - 1))
    )
    # An epoch has at least one step.
    epochs, sizes = max(recipe.epochs, steps), recipe.train_image_sizes[:1]
    recipe = replace(recipe, epochs=epochs, train_image_sizes=sizes, head_epochs=0, ema_decay=0.0)
    config = replace(config, recipe=recipe)
    run = set_up(config, dataset, parallel, origin_of(config, None, parallel), Custom(optimizer=optimizer))
    with memory_explained(recipe.batch_size):
        with Progress(steps, quiet=not parallel.is_primary) as progress:
            state, _ = saved_or_new(run, parallel, None, progress)
        losses = _losses(run.cache_features(state.variables, parallel), state, parallel, steps)
    smoothed = _smoothed(losses)
    rates = rates[: len(losses)]
    return LearningRates(rates, np.array(losses), smoothed, _suggestion(rates, smoothed))


def _losses(run: Setup, state: TrainState, parallel: Parallel, steps: int) -> list[float]:
    """The losses of the steps, up to the first at which the training has diverged."""
    losses: list[float] = []
    step = parallel.wrap(run.step_of(run.model, parallel.axis_name), donate=True)
    with (
        closing(to_device(run.feed.batches(0, steps), parallel.put)) as batches,
        counting("trying learning rates", steps, quiet=not parallel.is_primary) as (done, _),
    ):
        for batch in batches:
            state, device_sums = step(state, batch)
            sums = parallel.fetch(device_sums)
            losses.append(math.nan if sums["skipped"] else float(sums["loss"] / sums["count"]))
            done(len(losses))
            smoothed = _smoothed(losses)
            if not smoothed[-1] <= _DIVERGED * smoothed.min():
                break
    return losses


def _smoothed(losses: Sequence[float]) -> np.ndarray:
    """The moving averages [S] of the losses, with the latest weighted most and weights that add up to 1."""
    total, averages = 0.0, []
    for count, loss in enumerate(losses, 1):
        total = _MEMORY * total + (1 - _MEMORY) * loss
        averages.append(total / (1 - _MEMORY**count))
    return np.array(averages)


def _suggestion(rates: np.ndarray, smoothed: np.ndarray) -> float | None:
    lowest = int(np.nanargmin(smoothed)) if np.isfinite(smoothed).any() else 0
    return float(rates[lowest]) / 10 if lowest else None


def draw_learning_rates(result: LearningRates, title: str = "") -> Any:
    """A matplotlib figure of the losses by learning rate, with the suggestion marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(result.rates, result.losses, color="#56b4e9", alpha=0.6, linewidth=1, label="loss of a step")
    axis.plot(result.rates, result.smoothed, color="#0072b2", linewidth=2, label="moving average")
    if result.suggestion is not None:
        label = f"suggestion: {result.suggestion:.2g}\n({result.rule})"
        axis.axvline(result.suggestion, color="#d55e00", linestyle="--", label=label)
    finite = result.losses[np.isfinite(result.losses)]
    if len(finite):
        # The last losses can be many times as high as all others.
        low, high = finite.min(), min(finite.max(), 2 * max(finite[0], np.median(finite)))
        axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9)
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axis.set_title(title, parse_math=False)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(framealpha=0.9, edgecolor="none")
    return figure
