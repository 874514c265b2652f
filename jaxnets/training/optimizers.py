"""The five optimisers of the course, by name, on optax."""

from collections.abc import Callable
from typing import Any

import jax
import optax

Schedule = Callable[[Any], Any]

OPTIMIZERS: dict[str, Callable[[Schedule], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adagrad": optax.adagrad,
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
}


def make_optimizer(name: str, schedule: Schedule, weight_decay: float) -> optax.GradientTransformation:
    """The optimiser `name`; `weight_decay` is added to the gradients of kernels, not of norms and biases."""
    transformation = OPTIMIZERS[name](schedule)
    if weight_decay == 0:
        return transformation
    return optax.chain(optax.add_decayed_weights(weight_decay, mask=is_kernel), transformation)


def is_kernel(params: Any) -> Any:
    """True for each parameter of two axes or more: kernels, but not norms and biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def warmup_cosine(peak: float, steps: int, warmup_steps: int) -> Schedule:
    """Linear up to `peak`, reached after `warmup_steps` or a fifth of all if that is less, then a half cosine to 0."""
    warmup_steps = min(warmup_steps, steps // 5)
    return optax.warmup_cosine_decay_schedule(peak / (warmup_steps + 1), peak, warmup_steps, steps)
