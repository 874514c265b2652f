"""Probabilities of images that a classifier did not learn: a linear classifier on features, by cross-validation."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from jaxnets.errors import InputError

FOLDS = 5
# The weight of the squared norm against the sum of the losses; features have unit variance. With 5 % wrong labels among
# the digits, values from 1 to 1,000 find the same errors in the first tenth of the list.
PENALTY = 100.0
_STEPS = 200


def out_of_sample(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    folds: int = FOLDS,
    penalty: float = PENALTY,
    seed: int = 0,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Probabilities [N, K] for features [N, ...] and labels [N]; each image's by a classifier that did not see it.

    The images of each class are dealt to `folds` parts at random; for each part, multinomial logistic regression with
    an L2 penalty learns the other parts. `done` gets the number of parts so far. Maps are flattened. Raises InputError
    for fewer images than folds.
    """
    inputs = np.asarray(features, np.float32).reshape(len(features), -1)
    if len(inputs) < folds:
        raise InputError(f"{len(inputs)} images; expected at least {folds}, one for each part of the cross-validation")
    part = _parts(labels, folds, seed)
    probabilities = np.empty((len(inputs), num_classes))
    for index in range(folds):
        rest = part != index
        mean, deviation = inputs[rest].mean(axis=0), inputs[rest].std(axis=0)
        scale = np.where(deviation > 1e-6 * (np.abs(mean) + 1e-6), 1 / np.maximum(deviation, 1e-30), 0)
        weights = fit_logistic((inputs[rest] - mean) * scale, labels[rest], num_classes, penalty)
        logits = (inputs[~rest] - mean) * scale @ weights[:-1] + weights[-1]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities[~rest] = powers / powers.sum(axis=1, keepdims=True)
        done(index + 1)
    return probabilities


def fit_logistic(inputs: np.ndarray, labels: np.ndarray, num_classes: int, penalty: float) -> np.ndarray:
    """Weights [D + 1, K], the bias last, of multinomial logistic regression by L-BFGS, for inputs [N, D], labels [N].

    Minimises the sum of the cross-entropies plus `penalty` / 2 times the squared norm of the weights without the bias.
    """
    shape = inputs.shape[1] + 1, num_classes
    loss = partial(_loss_and_gradient, jnp.asarray(inputs), jnp.asarray(labels), jnp.float32(penalty / len(inputs)))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(jnp.asarray(flat.reshape(shape), jnp.float32))
        return float(value), np.asarray(gradient, np.float64).ravel()

    options = {"maxiter": _STEPS, "gtol": 1e-5, "ftol": 1e-7}
    result = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(result.x, np.float64).reshape(shape)


@jax.jit
def _loss_and_gradient(
    inputs: jax.Array, labels: jax.Array, decay: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def loss(weights: jax.Array) -> jax.Array:
        logits = jnp.dot(inputs, weights[:-1], precision="highest") + weights[-1]
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -right.mean() + decay / 2 * jnp.square(weights[:-1]).sum()

    return jax.value_and_grad(loss)(weights)


def _parts(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The part of each image [N]: those of a class in turns, in random order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    part = np.empty(len(labels), np.int64)
    # In turns over all classes, so that small classes do not all end up in the first parts.
    part[order] = np.arange(len(labels)) % folds
    return part
