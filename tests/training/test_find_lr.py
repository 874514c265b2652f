"""The learning-rate finder, on a quadratic whose limit of stability is known, and on digits."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import find_lr
from jaxnets.errors import InputError
from jaxnets.models.layers import Dense
from jaxnets.training.config import Config
from jaxnets.training.configure import configure
from jaxnets.training.custom import Custom
from jaxnets.training.find_lr import find_learning_rate
from jaxnets.training.parallel import Parallel
from jaxnets.training.setup import set_up
from jaxnets.training.state import create_state
from tests.training.tiny import GREYS, PLAIN

ONE = Parallel.choose("jit", jax.devices("cpu")[:1])
# All images of GREYS in each step.
FULL = Config("linear", replace(PLAIN, batch_size=len(GREYS.train)))


class Linear(nn.Module):
    """One dense layer on all pixels."""

    num_classes: int
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return Dense(self.num_classes, dtype=self.dtype, name="fc")(images.reshape(len(images), -1))


@pytest.fixture
def least_squares(monkeypatch: pytest.MonkeyPatch) -> float:
    """Makes every run a linear regression; the value is the limit 2 / L, L the largest curvature."""

    def squares(logits: jax.Array, _aux: Any, targets: jax.Array, **_: Any) -> jax.Array:
        return ((logits - targets) ** 2).sum(1).mean() / 2

    monkeypatch.setattr("jaxnets.training.step.training_loss", squares)
    monkeypatch.setattr("jaxnets.weights.runs.create_model", lambda name, **options: Linear(**options))
    images = np.stack([np.broadcast_to(GREYS.train[i].image.reshape(8, 8, -1), (8, 8, 3)) for i in range(32)])
    pixels = ((images / 255 - GREYS.mean) / GREYS.std).reshape(32, -1)
    inputs = np.concatenate([pixels, np.ones((32, 1))], axis=1)
    return 2 / float(np.linalg.eigvalsh(inputs.T @ inputs / 32).max())


def test_gradient_descent_on_a_quadratic_diverges_beyond_its_limit(least_squares: float) -> None:
    result = find_learning_rate(FULL, GREYS, parallel=ONE, steps=300, lowest=1e-5, highest=10.0)
    assert len(result.losses) < 300
    assert least_squares < result.rates[-1] < 3 * least_squares
    assert result.suggestion is not None
    assert least_squares / 100 < result.suggestion < least_squares
    assert result.suggestion == pytest.approx(result.rates[np.argmin(result.smoothed)] / 10)


def test_the_rate_grows_by_the_same_factor_and_moves_the_weights_that_much(least_squares: float) -> None:
    result = find_learning_rate(FULL, GREYS, parallel=ONE, steps=20, lowest=1e-5, highest=1e-4)
    np.testing.assert_allclose(result.rates, 1e-5 * 10 ** (np.arange(20) / 19))
    # So small steps: each loss is the one before, less rate times squared gradient; the gradient hardly changes.
    falls = -np.diff(result.losses)
    np.testing.assert_allclose(falls[5] / falls[0], result.rates[5] / result.rates[0], rtol=0.3)
    assert falls[5] > 1.4 * falls[0]


def test_a_loss_that_never_falls_gives_no_suggestion(least_squares: float) -> None:
    low = 10 * least_squares
    result = find_learning_rate(FULL, GREYS, parallel=ONE, steps=50, lowest=low, highest=10 * low)
    assert result.suggestion is None
    assert len(result.losses) < 5


@pytest.mark.slow
def test_the_suggested_rate_trains_digits_better_than_others() -> None:
    settings = {"arch": "resnet20_cifar", "image_size": 8, "batch_size": 64, "warmup_epochs": 0.0}
    config = configure(settings)
    suggestion = find_learning_rate(config, parallel=ONE).suggestion
    assert suggestion is not None

    def at(rate: Any) -> optax.GradientTransformation:
        return config.recipe.make_optimizer(lambda _: rate)

    optimizer = optax.inject_hyperparams(at)(rate=1.0)
    run = set_up(config, None, ONE, None, Custom(optimizer=optimizer))
    start = create_state(run.network, optimizer, 0, 8)
    step = jax.jit(run.step_of(run.model, None))

    def loss_with(rate: float) -> float:
        hyperparams = {"rate": jnp.float32(rate)}
        state, losses = replace(start, opt_state=start.opt_state._replace(hyperparams=hyperparams)), []
        for batch in run.feed.batches(0, 60):
            state, sums = step(state, batch)
            losses.append(float(sums["loss"] / sums["count"]) if sums["count"] else np.inf)
        return float(np.mean(losses[-20:]))

    best, low, high = (loss_with(factor * suggestion) for factor in (1, 0.01, 30))
    print(f"suggestion {suggestion:.2g}: loss {best:.3f}; a hundredth: {low:.3f}; 30 times: {high:.3f}")
    assert best < 0.9 * min(low, high)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 1.0, "highest": 0.1}, "0 < lowest < highest"),
        ({"lowest": 0}, "0 < lowest"),
        ({"steps": 9}, "steps=9"),
    ],
)
def test_no_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_learning_rate(FULL, GREYS, parallel=ONE, **options)


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxnets find-lr", *map(str, arguments)])
    find_lr.main()


@pytest.mark.usefixtures("tiny")
def test_the_command_prints_a_table_and_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (
        "--arch",
        "resnet20_cifar",
        "--batch-size",
        256,
        "--image-size",
        8,
        "--steps",
        60,
        "--parallel",
        "jit",
        "--lowest",
        1e-4,
    )
    _main(monkeypatch, *words, "--output", "lr.svg")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rate", "loss"]
    rates = [float(line.split()[0]) for line in lines[1:-2]]
    assert rates == sorted(rates)
    assert rates[0] == 1e-4
    assert lines[-2].startswith("suggested --lr ")
    assert lines[-2].endswith("(a tenth of the rate of the smallest loss)")
    assert (tmp_path / "lr.svg").read_text().startswith("<?xml")
    assert [path.name for path in tmp_path.iterdir()] == ["lr.svg"]
    with pytest.raises(InputError, match=r"lr\.svg exists already"):
        _main(monkeypatch, *words, "--output", "lr.svg")
    with pytest.raises(InputError, match=r"ends in \.png or \.svg"):
        _main(monkeypatch, *words, "--output", "lr.pdf")
