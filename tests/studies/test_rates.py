"""Training at several rates at once is training at each of them, and what it measures is what a loop counts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import rates
from experiments.studies.data import study_data, subset
from experiments.studies.lab import Lab
from experiments.studies.rates import LARGEST_LOSS, AtRates, train_at_rates
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe
from jaxnets.training.state import TrainState

RECIPE = Recipe(
    image_size=8,
    epochs=2,
    batch_size=16,
    optimizer="momentum",
    learning_rate=1.0,
    weight_decay=0.0,
    schedule="constant",
    warmup_epochs=0.0,
)
CONFIG = Config("experiments.studies.optimizers_runs:perceptron", RECIPE, seed=5, network_options={"width": 4})


def at(losses: list[list[float]], steps_an_epoch: int) -> AtRates:
    nothing = np.zeros(0)
    return AtRates(np.array(losses), nothing, nothing, nothing, nothing, steps_an_epoch)


def test_steps_to_a_loss_are_those_that_a_loop_counts() -> None:
    losses = np.random.default_rng(0).random((30, 4)) * np.linspace(2, 0.2, 30)[:, None]
    losses[:, 3] = 5
    found = at(losses.tolist(), 4).steps_to(0.5)
    for rate in range(4):
        expected = next((end for end in range(4, 31) if losses[end - 4 : end, rate].mean() < 0.5), 31)
        assert found[rate] == expected
    assert found[3] == 31


@pytest.mark.slow
def test_each_rate_is_trained_as_the_lab_trains_it() -> None:
    data = subset(study_data("digits"), 0, 64, 100)
    lab = Lab(data, 5)
    found = train_at_rates(lab, CONFIG, (0.01, 0.1), data)
    assert found.losses.shape == (8, 2)
    for place, rate in enumerate((0.01, 0.1)):
        trained = lab.train(replace(CONFIG, recipe=replace(RECIPE, learning_rate=rate)))
        np.testing.assert_allclose(found.epoch_losses[:, place], trained.losses, rtol=1e-4)
        np.testing.assert_allclose(found.losses[:, place].reshape(2, 4).mean(axis=1), trained.losses, rtol=1e-4)
        assert found.val_accuracies[:, place].tolist() == pytest.approx(trained.val_accuracies)
        assert found.test_accuracies[place] == pytest.approx(trained.on("test").metrics["accuracy"])
    np.testing.assert_allclose(found.effective, [[0.01, 0.1]] * 2, rtol=1e-6)


@pytest.mark.slow
def test_a_rate_that_diverges_has_the_largest_loss() -> None:
    data = subset(study_data("digits"), 0, 64, 100)
    found = train_at_rates(Lab(data, 5), CONFIG, (1e30, 0.1), data, judge_epochs=False)
    assert found.losses[1:, 0].tolist() == [LARGEST_LOSS] * 7
    assert found.losses[:, 1].max() < LARGEST_LOSS
    assert found.effective.size == found.val_accuracies.size == 0


@pytest.mark.parametrize("optimizer", ["adagrad", "rmsprop"])
def test_effective_rates_are_those_of_the_papers(optimizer: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)
    gradients = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    transform = recipe.make_optimizer(lambda step: 1.0)
    params = {"w": jnp.zeros(5)}
    state = transform.init(params)
    for gradient in gradients:
        _, state = transform.update({"w": jnp.asarray(gradient)}, state, params)
    states = TrainState(jnp.zeros(()), jnp.zeros(2, jnp.uint32), params, {}, state, {}, jnp.zeros(()))
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), states)
    found = rates._effective(jnp.array([0.1, 0.3]), states, recipe=recipe)
    sums = np.zeros(5)
    for gradient in gradients:
        sums = sums + gradient**2 if optimizer == "adagrad" else 0.99 * sums + 0.01 * gradient**2
    if optimizer == "rmsprop":
        sums *= 0.99  # the next step's average, with a gradient of 0
    np.testing.assert_allclose(found, np.array([0.1, 0.3]) * np.median(1 / np.sqrt(sums)), rtol=1e-5)
