"""The optimisers by name, on optax: as torch defines them, or as their papers do if torch has none."""

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
    """The optimiser `name` with the learning rates of `schedule`; raises InputError for an unknown name.

    `momentum` is the momentum of momentum, nesterov, lars and muon, and beta 1 of adam, adamw and lamb. If `clip_norm`
    is above 0, gradients are first clipped to that global norm.

    `weight_decay` times the parameters is added to the gradients. If it is decoupled (Loshchilov & Hutter 2019), it is
    instead multiplied by the learning rate and subtracted from the parameters. adamw and muon always decouple it; lars
    and lamb apply it within the trust ratio. Norms and biases do not decay unless `decay_norms_and_biases`.

    Norms and biases have no trust ratio: lars updates them by momentum, lamb by Adam. muon updates them by AdamW with
    its default betas and the same learning rate.
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
            # The learning rate comes before the momentum, as in the paper: a change does not affect past steps.
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
    """True for each parameter of two or more axes: kernels, but not norms and biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _kinds(params: Any) -> Any:
    return jax.tree.map(lambda kernel: "kernel" if kernel else "other", is_kernel(params))


def _scale_by_adagrad() -> optax.GradientTransformation:
    """Gradients divided by the root of the sum of their squares, which starts at 0 (Duchi et al. 2011).

    optax.scale_by_rss adds its epsilon under the root.
    """

    def update(gradients: Any, sums: Any, params: Any = None) -> tuple[Any, Any]:
        sums = jax.tree.map(lambda g, s: s + g**2, gradients, sums)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + 1e-10), gradients, sums), sums

    return optax.GradientTransformation(partial(jax.tree.map, jnp.zeros_like), update)


def _scale_by_lars(weight_decay: float, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """Decayed gradients; those of kernels times the local learning rate (You et al. 2017, algorithm 1).

    The norms of gradient and decay are added, whereas optax.lars uses the norm of the sum.
    """

    def scale(gradient: jax.Array, decayed: jax.Array, param: jax.Array) -> jax.Array:
        if param.ndim < 2:
            return decayed
        length, slope = (jnp.linalg.norm(x.ravel()) for x in (param, gradient))
        ratio = _LARS_TRUST * length / (slope + weight_decay * length)
        # Otherwise a kernel of zeros would stay zero.
        return decayed * jnp.where((length > 0) & (slope > 0), ratio, 1.0)

    def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        decayed, state = decay.update(gradients, state, params)
        return jax.tree.map(scale, gradients, decayed, params), state

    return optax.GradientTransformation(decay.init, update)


def _scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised for each kernel (Jordan 2024, kellerjordan.github.io/posts/muon).

    optax.contrib.muon also corrects the bias of the averages.
    """

    def blend(average: Any, gradients: Any) -> Any:
        return jax.tree.map(lambda a, g: momentum * a + (1 - momentum) * g, average, gradients)

    def update(gradients: Any, average: Any, params: Any = None) -> tuple[Any, Any]:
        average = blend(average, gradients)
        return jax.tree.map(_orthogonal, blend(average, gradients)), average

    return optax.GradientTransformation(partial(jax.tree.map, jnp.zeros_like), update)


def _orthogonal(kernel: jax.Array) -> jax.Array:
    """The kernel, as a matrix [rest, out] with singular values near 1, times max(1, out / rest) ** 0.5."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    rows, columns = matrix.shape
    # The polynomial is odd, so the transpose gives the same result; the smaller product is faster.
    matrix = matrix.T if rows > columns else matrix
    matrix /= jnp.maximum(jnp.linalg.norm(matrix), 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    matrix = matrix.T if rows > columns else matrix
    return max(1.0, columns / rows) ** 0.5 * matrix.reshape(kernel.shape)
