"""The optimisers, by name, on optax: torch's definitions where torch has one, otherwise the papers'."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnets.errors import InputError
from jaxnets.training.schedules import Schedule

OPTIMIZERS: tuple[str, ...] = (
    "sgd",
    "momentum",
    "nesterov",
    "adagrad",
    "rmsprop",
    "adam",
    "adamw",
    "lars",
    "lamb",
    "muon",
)
_LARS_TRUST = 1e-3
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def make_optimizer(
    name: str,
    schedule: Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    decay_norms_and_biases: bool = False,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """The optimiser `name`, at the learning rates of `schedule`; raises InputError if there is none of that name.

    `momentum` is that of momentum, nesterov, lars and muon, and the beta 1 of adam, adamw and lamb. Gradients are first
    clipped to the global norm `clip_norm`, if that is above 0.

    `weight_decay` times the parameters is added to the gradients; or, decoupled, it is taken from the parameters, times
    the learning rate, beside the update (Loshchilov & Hutter 2019). adamw and muon always do the latter; lars and lamb
    have their own place for it, within the trust ratio. Norms and biases do not decay unless `decay_norms_and_biases`.

    Norms and biases have no trust ratio, so lars moves them by momentum and lamb by Adam; muon moves them by AdamW with
    its usual betas, at the same learning rate.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    decay = optax.add_decayed_weights(weight_decay, None if decay_norms_and_biases else is_kernel)
    rate = optax.scale_by_learning_rate(schedule)
    match name:
        case "sgd":
            direction = optax.identity()
        case "momentum" | "nesterov":
            direction = optax.trace(momentum, nesterov=name == "nesterov")
        case "adagrad":
            direction = _scale_by_adagrad()
        case "rmsprop":
            direction = optax.scale_by_rms(0.99, eps_in_sqrt=False)
        case "adam" | "adamw":
            direction = optax.scale_by_adam(momentum)
        case "lars":
            # The rate comes before the momentum, as in the paper: a change of it does not touch past steps.
            return optax.chain(clip, _scale_by_lars(weight_decay, decay), rate, optax.trace(momentum))
        case "lamb":
            trust = optax.masked(optax.scale_by_trust_ratio(), is_kernel)
            return optax.chain(clip, optax.scale_by_adam(momentum, eps=1e-6), decay, trust, rate)
        case "muon":
            directions = {"kernel": _scale_by_muon(momentum), "other": optax.scale_by_adam()}
            direction = optax.partition(directions, _kinds)
        case _:
            raise InputError(f"unknown optimizer {name!r}; expected one of {', '.join(OPTIMIZERS)}")
    if decoupled_weight_decay or name in ("adamw", "muon"):
        return optax.chain(clip, direction, decay, rate)
    return optax.chain(clip, decay, direction, rate)


def is_kernel(params: Any) -> Any:
    """True for each parameter of two axes or more: kernels, but not norms and biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _kinds(params: Any) -> Any:
    return jax.tree.map(lambda kernel: "kernel" if kernel else "other", is_kernel(params))


def _scale_by_adagrad() -> optax.GradientTransformation:
    """Gradients over the root of the sum of their squares: Duchi et al. 2011, from a sum of 0.

    optax.scale_by_rss has its epsilon under the root.
    """

    def update(gradients: Any, sums: Any, params: Any = None) -> tuple[Any, Any]:
        sums = jax.tree.map(lambda g, s: s + g**2, gradients, sums)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + 1e-10), gradients, sums), sums

    return optax.GradientTransformation(partial(jax.tree.map, jnp.zeros_like), update)


def _scale_by_lars(weight_decay: float, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """Decayed gradients, those of kernels times the local learning rate: You et al. 2017, algorithm 1.

    The norms of gradient and decay are added up; optax.lars has the norm of their sum.
    """

    def scale(gradient: jax.Array, decayed: jax.Array, param: jax.Array) -> jax.Array:
        if param.ndim < 2:
            return decayed
        length, slope = (jnp.linalg.norm(x.ravel()) for x in (param, gradient))
        ratio = _LARS_TRUST * length / (slope + weight_decay * length)
        # A kernel of zeros would stay so for ever.
        return decayed * jnp.where((length > 0) & (slope > 0), ratio, 1.0)

    def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        decayed, state = decay.update(gradients, state, params)
        return jax.tree.map(scale, gradients, decayed, params), state

    return optax.GradientTransformation(decay.init, update)


def _scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Nesterov's momentum, each kernel made orthogonal: Jordan 2024, kellerjordan.github.io/posts/muon.

    optax.contrib.muon corrects the bias of its averages.
    """

    def blend(average: Any, gradients: Any) -> Any:
        return jax.tree.map(lambda a, g: momentum * a + (1 - momentum) * g, average, gradients)

    def update(gradients: Any, average: Any, params: Any = None) -> tuple[Any, Any]:
        average = blend(average, gradients)
        return jax.tree.map(_orthogonal, blend(average, gradients)), average

    return optax.GradientTransformation(partial(jax.tree.map, jnp.zeros_like), update)


def _orthogonal(kernel: jax.Array) -> jax.Array:
    """The kernel as a matrix [all else, out] with singular values near 1, times max(1, out / all else) ** 0.5."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    rows, columns = matrix.shape
    # The polynomial is odd, so it is the same of the transpose; the smaller product is quicker.
    matrix = matrix.T if rows > columns else matrix
    matrix /= jnp.maximum(jnp.linalg.norm(matrix), 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    matrix = matrix.T if rows > columns else matrix
    return max(1.0, columns / rows) ** 0.5 * matrix.reshape(kernel.shape)
