"""A network of one hidden layer whose gradient is written by hand, in NumPy's float64."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Weights(NamedTuple):
    """The weights [D, H], [H], [H, K] and [K] of a network with D inputs, H hidden units and K outputs."""

    first: Any
    first_bias: Any
    last: Any
    last_bias: Any

    @property
    def flat(self) -> np.ndarray:
        """All weights in one array [P]."""
        return np.concatenate([np.ravel(array) for array in self])

    def shaped(self, flat: np.ndarray) -> "Weights":
        """The numbers [P] as weights of the shapes of these."""
        parts = np.split(flat, np.cumsum([array.size for array in self])[:-1])
        return Weights(*(part.reshape(array.shape) for part, array in zip(parts, self, strict=True)))


def initial_weights(random: np.random.Generator, inputs: int, hidden: int, outputs: int) -> Weights:
    """Kernels from N(0, 1 / fan in), and biases of 0."""
    return Weights(
        random.normal(0, inputs**-0.5, (inputs, hidden)),
        np.zeros(hidden),
        random.normal(0, hidden**-0.5, (hidden, outputs)),
        np.zeros(outputs),
    )


def forward(weights: Weights, inputs: Any) -> tuple[Any, Any]:
    """The signals, from inputs [N, D] forward: tanh of the hidden units [N, H], and logits [N, K]."""
    array = jnp if isinstance(inputs, jax.Array) else np
    hidden = array.tanh(inputs @ weights.first + weights.first_bias)
    return hidden, hidden @ weights.last + weights.last_bias


def loss(weights: Weights, inputs: Any, targets: Any) -> Any:
    """The mean cross entropy of inputs [N, D] with target probabilities [N, K]; of NumPy's or JAX's arrays."""
    array = jnp if isinstance(inputs, jax.Array) else np
    _, logits = forward(weights, inputs)
    logits = logits - logits.max(axis=1, keepdims=True)
    return (array.log(array.exp(logits).sum(axis=1)) - (logits * targets).sum(axis=1)).mean()


def backward(weights: Weights, hidden: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> tuple[Any, Any]:
    """The errors, from the outputs backward: the derivatives of the loss of each image by the sums that the hidden
    units [N, H] and the outputs [N, K] compute.
    """
    at_outputs = softmax(logits) - targets
    return (at_outputs @ weights.last.T) * (1 - hidden**2), at_outputs


def gradient(weights: Weights, inputs: np.ndarray, targets: np.ndarray) -> Weights:
    """The gradient of the mean loss: at each weight the signal that enters it times the error behind it."""
    hidden, logits = forward(weights, inputs)
    at_hidden, at_outputs = backward(weights, hidden, logits, targets)
    number = len(inputs)
    return Weights(
        inputs.T @ at_hidden / number, at_hidden.mean(axis=0), hidden.T @ at_outputs / number, at_outputs.mean(axis=0)
    )


def products(weights: Weights, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The scalar products [N, N] of the gradients of single images, without computing those."""
    hidden, logits = forward(weights, inputs)
    at_hidden, at_outputs = backward(weights, hidden, logits, targets)
    # The gradient of an image is the outer product of signals (1 for a bias) and errors.
    of_first = (inputs @ inputs.T + 1) * (at_hidden @ at_hidden.T)
    of_last: np.ndarray = (hidden @ hidden.T + 1) * (at_outputs @ at_outputs.T)
    return of_first + of_last


def differences(weights: Weights, inputs: np.ndarray, targets: np.ndarray, width: float = 1e-5) -> np.ndarray:
    """The gradient [P] by central differences of the loss."""
    flat = weights.flat
    slopes = np.empty_like(flat)
    for place, step in enumerate(width * np.eye(len(flat))):
        after, before = (loss(weights.shaped(flat + sign * step), inputs, targets) for sign in (1, -1))
        slopes[place] = (after - before) / (2 * width)
    return slopes


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, K] of logits [N, K]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
