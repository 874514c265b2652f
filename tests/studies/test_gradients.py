"""The hand-written gradient is the gradient, and the study of gradients notices one that is not."""

from typing import Any

import numpy as np
import pytest

from experiments.studies import backpropagation
from experiments.studies.backpropagation import Weights, initial_weights
from experiments.studies.data import study_data
from experiments.studies.gradients import STUDY, Descent, Settings, cosines
from experiments.studies.lab import Lab
from experiments.studies.study import FAILS, HOLDS

SMALL = Settings(hidden=8, images=64, batch_size=8, steps=40, sizes=(1, 8, 32), points=4)


def verdicts() -> dict[str, str]:
    measured = STUDY.measure(Lab(study_data("digits"), 0), SMALL)
    return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])}


def problem(seed: int = 0) -> tuple[Weights, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    weights = initial_weights(random, 5, 4, 3)
    return weights, random.normal(size=(6, 5)), np.eye(3)[random.integers(0, 3, 6)]


def test_gradients_are_right_and_go_down_here() -> None:
    found = verdicts()
    assert found["backpropagation"] == found["descent"] == found["larger-batches"] == HOLDS


def test_an_error_that_forgets_the_hidden_slope_turns_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(weights: Weights, hidden: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> tuple[Any, Any]:
        at_outputs = backpropagation.softmax(logits) - targets
        return at_outputs @ weights.last.T, at_outputs

    monkeypatch.setattr(backpropagation, "backward", careless)
    found = verdicts()
    assert found["backpropagation"] == FAILS


def test_a_gradient_that_points_elsewhere_does_not_go_down(monkeypatch: pytest.MonkeyPatch) -> None:
    right = backpropagation.gradient

    def mixed_up(*arguments: Any) -> Weights:
        slopes = right(*arguments)
        return slopes._replace(last=np.roll(slopes.last, 1, axis=1))

    monkeypatch.setattr(backpropagation, "gradient", mixed_up)
    assert verdicts()["descent"] == FAILS


def test_the_loss_is_that_of_a_loop() -> None:
    weights, inputs, targets = problem()
    losses = []
    for image, target in zip(inputs, targets, strict=True):
        hidden = [np.tanh(sum(image * weights.first[:, unit]) + weights.first_bias[unit]) for unit in range(4)]
        logits = [sum(hidden * weights.last[:, output]) + weights.last_bias[output] for output in range(3)]
        losses.append(-np.log(np.exp(logits[target.argmax()]) / np.exp(logits).sum()))
    assert backpropagation.loss(weights, inputs, targets) == pytest.approx(np.mean(losses), rel=1e-12)


def test_products_are_those_of_the_gradients_of_single_images() -> None:
    weights, inputs, targets = problem()
    single = np.array(
        [backpropagation.gradient(weights, x[None], t[None]).flat for x, t in zip(inputs, targets, strict=True)]
    )
    np.testing.assert_allclose(backpropagation.products(weights, inputs, targets), single @ single.T, rtol=1e-10)
    np.testing.assert_allclose(
        backpropagation.gradient(weights, inputs, targets).flat, single.mean(axis=0), rtol=1e-12, atol=1e-15
    )


def test_cosines_are_those_of_the_gradients() -> None:
    weights, inputs, targets = problem()
    whole = backpropagation.gradient(weights, inputs, targets).flat
    single = np.array(
        [backpropagation.gradient(weights, x[None], t[None]).flat for x, t in zip(inputs, targets, strict=True)]
    )
    found = cosines(backpropagation.products(weights, inputs, targets), 1, np.random.default_rng(0))
    expected = single @ whole / np.linalg.norm(single, axis=1) / np.linalg.norm(whole)
    assert set(found.round(10)) == set(expected.round(10))
    all_of_them = cosines(backpropagation.products(weights, inputs, targets), 6, np.random.default_rng(0))
    np.testing.assert_allclose(all_of_them, 1)


def test_descent_goes_along_the_gradient() -> None:
    weights, inputs, targets = problem()
    descent = Descent(weights, inputs, targets)
    path = descent.path(0.5, [slice(None), np.array([1, 4])])
    assert path.shape == (3, len(weights.flat))
    np.testing.assert_allclose(path[1], weights.flat - 0.5 * descent.gradient(weights.flat))
    slopes = backpropagation.differences(weights.shaped(path[1]), inputs[[1, 4]], targets[[1, 4]])
    np.testing.assert_allclose(path[2], path[1] - 0.5 * slopes, atol=1e-9)
    np.testing.assert_array_equal(weights.shaped(weights.flat).last, weights.last)
    assert descent.loss(path[1]) < descent.loss(path[0])
