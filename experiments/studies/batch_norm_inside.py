"""What the norms of a network read and write in training mode, and what a bias before them changes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxnets.models.layers import BatchNorm

# How many channels of a norm are shown.
SHOWN_CHANNELS = 3


@partial(jax.jit, static_argnames=("model", "shown"))
def observe(model: Any, variables: Any, images: jax.Array, shown: str) -> tuple[jax.Array, dict[str, Any], Any]:
    """A pass in training mode: logits [N, K]; for each norm `image_moments`, mean and mean square [N, C] of its input
    in each image, and mean and variance [C] of its `normalised` values;
    and what the norm `shown` reads and has normalised, [..., C].
    """
    norms: dict[str, Any] = {}
    values: list[jax.Array] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        norm = context.module
        if context.method_name != "__call__" or not isinstance(norm, BatchNorm):
            return call(*args, **kwargs)
        inputs, *activation = args
        outputs, name = call(inputs), "/".join(norm.path)
        params = norm.variables["params"]
        normalised = (outputs - params["bias"]) / params["scale"]
        norms[name] = {
            "image_moments": (inputs.mean(axis=(1, 2)), jnp.square(inputs).mean(axis=(1, 2))),
            "normalised": (normalised.mean(axis=(0, 1, 2)), normalised.var(axis=(0, 1, 2))),
        }
        if name == shown:
            values.extend(array.reshape(-1, array.shape[-1])[:, :SHOWN_CHANNELS] for array in (inputs, normalised))
        return activation[0](outputs) if activation and activation[0] is not None else outputs

    with nn.intercept_methods(record):
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return logits, norms, values


def errors_at(norms: Mapping[str, Any], images: int, seed: int) -> list[float]:
    """The root mean squares, over channels and batches of `images` images, of the errors of a batch's mean, in standard
    deviations, and of its variance, relative to the variance; the truth is that of all images of `observe`.
    """
    squares = []
    for norm in norms.values():
        means, mean_squares = (np.asarray(moments, np.float64) for moments in norm["image_moments"])
        mean, var = means.mean(axis=0), mean_squares.mean(axis=0) - means.mean(axis=0) ** 2
        order = np.random.default_rng(seed).permutation(len(means))[: len(means) // images * images]
        of_batch, square_of_batch = (
            part[order].reshape(-1, images, len(mean)).mean(1) for part in (means, mean_squares)
        )
        var_of_batch = square_of_batch - of_batch**2
        alive = var > 1e-12
        squares.append(((of_batch - mean) ** 2 / var)[:, alive].mean())
        squares.append(((var_of_batch / var - 1) ** 2)[:, alive].mean())
    return [float(np.sqrt(np.mean(squares[kind::2]))) for kind in (0, 1)]


def bias_effect(model: Any, variables: Any, images: jax.Array, labels: np.ndarray, seed: int) -> dict[str, float]:
    """What random biases of all convolutions change, in float64 and training mode: the logits' largest change, relative
    to the largest logit; and the largest ratio of the gradients' norms, of a bias to its kernel.
    """
    with jax.enable_x64(True):
        random = np.random.default_rng(seed)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables["params"]))
        flat = flatten_dict(params)
        convolutions = [path[:-1] for path, leaf in flat.items() if leaf.ndim == 4]
        biases = {(*path, "bias"): random.normal(size=flat[*path, "kernel"].shape[-1]) for path in convolutions}
        stats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables.get("batch_stats", {})))
        inputs = jnp.asarray(np.asarray(images, np.float64))

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits, _ = model.clone(dtype=jnp.float64).apply(
                {"params": unflatten_dict(params), "batch_stats": stats}, inputs, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        program = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, plain), _ = program(flat | {path: np.zeros_like(bias) for path, bias in biases.items()})
        (_, biased), gradients = program(flat | biases)
    norms = {path: float(np.linalg.norm(np.ravel(leaf))) for path, leaf in gradients.items()}
    change = np.abs(np.asarray(plain) - np.asarray(biased)).max()
    return {
        "outputs": float(change / np.abs(np.asarray(plain)).max()),
        "gradient": max(norms[*path, "bias"] / norms[*path, "kernel"] for path in convolutions),
    }
