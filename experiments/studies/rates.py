"""Training at several learning rates at once, by one program that is compiled once for all seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.studies.lab import Lab
from jaxnets.data.batches import evaluation_slots
from jaxnets.data.pipeline import Batch, Preprocessed, read_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Dataset, Source
from jaxnets.training.config import Config
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipe import Recipe
from jaxnets.training.setup import set_up
from jaxnets.training.state import TrainState, create_state
from jaxnets.training.step import evaluation_step, train_step

# The loss of a step that was skipped as it was not finite, and the largest that is recorded.
LARGEST_LOSS = 100.0


@dataclass(frozen=True)
class AtRates:
    """What R trainings measured, which differ only in their learning rates.

    `losses` [steps, R] are those of the batches, at most `LARGEST_LOSS`, and `epoch_losses` [epochs, R] their means.
    `effective` [epochs, R] are the medians over the weights of their effective learning rates after each epoch: the
    factor of the gradient in the next step. `val_accuracies` are [epochs, R], `test_accuracies` [R].
    """

    losses: np.ndarray
    epoch_losses: np.ndarray
    effective: np.ndarray
    val_accuracies: np.ndarray
    test_accuracies: np.ndarray
    steps_an_epoch: int

    def running_losses(self) -> np.ndarray:
        """The means [steps - steps an epoch + 1, R] of the losses over the steps of an epoch."""
        sums = np.cumsum(np.concatenate([np.zeros((1, self.losses.shape[1])), self.losses]), axis=0)
        means: np.ndarray = (sums[self.steps_an_epoch :] - sums[: -self.steps_an_epoch]) / self.steps_an_epoch
        return means

    def steps_to(self, loss: float) -> np.ndarray:
        """The steps [R] after which the running loss is below `loss`; one more than all if it never is."""
        below = self.running_losses() < loss
        first = below.argmax(axis=0) + self.steps_an_epoch
        steps: np.ndarray = np.where(below.any(axis=0), first, len(self.losses) + 1)
        return steps


def train_at_rates(
    lab: Lab, config: Config, rates: Sequence[float], dataset: Dataset, *, judge_epochs: bool = True
) -> AtRates:
    """Trains with the seed of `config` at each of the constant `rates`, from the same weights on the same batches.

    The learning rate, the schedule and the warm-up of the recipe are not used. Unless `judge_epochs`, there are neither
    effective rates nor val accuracies.
    """
    recipe = replace(config.recipe, learning_rate=1.0, schedule="constant", warmup_epochs=0.0)
    run = set_up(replace(config, recipe=recipe), dataset, Parallel.choose("jit"), quiet=True)
    network, inputs, each = run.network, run.inputs, jnp.asarray(rates)
    state = create_state(network, run.optimizer, config.seed, recipe.image_size, declared=run.declared)
    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(rates), *leaf.shape)), state)
    losses, effective, val = [], [], []
    batches = run.feed.batches(0, run.steps)
    for epoch in range(1, recipe.epochs + 1):
        steps = run.feed.steps_through(epoch) - run.feed.steps_through(epoch - 1)
        of_epoch = Batch(*map(np.stack, zip(*(next(batches) for _ in range(steps)), strict=True)))
        states, sums = _train(each, states, of_epoch, network=network, recipe=recipe, inputs=inputs)
        means = np.asarray(sums["loss"]) / np.maximum(np.asarray(sums["count"]), 1)
        losses.append(np.where(np.asarray(sums["skipped"]) > 0, LARGEST_LOSS, np.minimum(means, LARGEST_LOSS)))
        if judge_epochs:
            effective.append(np.asarray(_effective(each, states, recipe=recipe)))
        if judge_epochs and "val" in run.evaluated:
            val.append(_accuracies(states.variables, run.evaluated["val"], network, inputs, recipe.batch_size))
        lab.note(f"{recipe.optimizer}, epoch {epoch} of {recipe.epochs}")
    test = _accuracies(states.variables, run.dataset.parts[run.dataset.judged_on], network, inputs, recipe.batch_size)
    return AtRates(
        losses=np.concatenate(losses),
        epoch_losses=np.array([of_epoch.mean(axis=0) for of_epoch in losses]),
        effective=np.array(effective),
        val_accuracies=np.array(val),
        test_accuracies=test,
        steps_an_epoch=run.feed.steps_through(1),
    )


@partial(jax.jit, static_argnames=("network", "recipe", "inputs"))
def _train(
    rates: jax.Array, states: TrainState, batches: Batch, *, network: nn.Module, recipe: Recipe, inputs: Preprocessing
) -> tuple[TrainState, Any]:
    """The states of all rates after the steps of `batches`, and the sums [steps, R] of their metrics."""

    def one(rate: jax.Array, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        optimizer = recipe.make_optimizer(lambda step: rate)
        return train_step(state, batch, model=network, optimizer=optimizer, preprocessing=inputs, recipe=recipe)

    def step(states: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        return jax.vmap(one, (0, 0, None))(rates, states, batch)

    return lax.scan(step, states, batches)


@partial(jax.jit, static_argnames="recipe")
def _effective(rates: jax.Array, states: TrainState, *, recipe: Recipe) -> jax.Array:
    """The derivative of a weight's step by its gradient, where that is 0: the median [R] over the weights."""

    def one(rate: jax.Array, state: TrainState) -> jax.Array:
        optimizer = recipe.make_optimizer(lambda step: rate)

        def step(gradients: Any) -> Any:
            return optimizer.update(gradients, state.opt_state, state.params)[0]

        nothing, ones = (jax.tree.map(fill, state.params) for fill in (jnp.zeros_like, jnp.ones_like))
        _, factors = jax.jvp(step, (nothing,), (ones,))
        # Weights that never had a gradient have no derivative.
        return jnp.nanmedian(-jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(factors)]))

    return jax.vmap(one)(rates, states)


def _accuracies(
    variables: Any, source: Source | Preprocessed, network: nn.Module, inputs: Preprocessing, size: int
) -> np.ndarray:
    plan = evaluation_slots(size, len(source))
    sums = [_judge(variables, batch, network=network, inputs=inputs) for batch in read_batches(source, inputs, plan)]
    accuracies: np.ndarray = np.sum(sums, axis=0) / len(source)
    return accuracies


@partial(jax.jit, static_argnames=("network", "inputs"))
def _judge(variables: Any, batch: Batch, *, network: nn.Module, inputs: Preprocessing) -> jax.Array:
    """The number [R] of images that each of the networks classifies correctly."""

    def one(variables: Any) -> jax.Array:
        return evaluation_step(variables, batch, model=network, preprocessing=inputs)[2]["accuracy"]

    return jax.vmap(one)(variables)
