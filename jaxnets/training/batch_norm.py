"""Batch normalisation: whose statistics it uses in training, and the recalibration of the running ones for the test."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.batches import training_slots
from jaxnets.data.pipeline import Batch
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.models.contract import has_option
from jaxnets.models.layers import param_dtype
from jaxnets.models.norms import with_norms
from jaxnets.training.config import Config
from jaxnets.training.evaluation import run_batches
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipe import Recipe

# Wu & He 2018 (Group Normalization), figure 1: the error of ResNet-50 rises as it falls below 16 images.
_SMALL_BATCH = 16


def with_batch_norm(model: nn.Module, kind: str, axis_name: str | None) -> Any:
    """The network with statistics of each replica ("local"), of all replicas ("synchronised"), or running ("frozen").

    Dropout differs between the replicas of `axis_name` in any case. Raises InputError for "synchronised" if the network
    does not have the field `axis_name`.
    """
    knows_axis = has_option(model, "axis_name")
    if kind == "synchronised" and not knows_axis:
        raise InputError(
            f"{type(model).__name__} has no field axis_name, as --batch-norm synchronised needs; use --batch-norm local"
        )
    if axis_name is not None and knows_axis:
        model = model.clone(axis_name=axis_name)
    changes: dict[str, Any] = {}
    if kind == "frozen":
        changes["frozen"] = None
    if axis_name is not None:
        changes |= {"local": kind == "local"} if knows_axis else {"replicas": axis_name}
    return with_norms(model, **changes) if changes else model


def small_batch_warning(recipe: Recipe, replicas: int, *, has_norm: bool) -> list[str]:
    """A warning if too few images are normalised together."""
    kind = recipe.batch_norm
    together = recipe.batch_size // recipe.accumulation // (1 if kind == "synchronised" else replicas)
    if not has_norm or kind == "frozen" or together >= _SMALL_BATCH:
        return []
    way = "" if replicas == 1 or kind == "synchronised" else "--batch-norm synchronised, "
    return [
        f"warning: batch normalisation sees only {together} images at a time (fewer than {_SMALL_BATCH}); "
        f"{way}a larger --batch-size, or --precise-batch-norm-images may help"
    ]


def batch_moments(
    variables: Any, batch: Batch, *, model: Any, preprocessing: Preprocessing, axis_name: str | None
) -> Any:
    """Mean and variance of the inputs of each norm, for one batch of uint8 images [N, H, W, 3]."""
    model = with_norms(model, moments=True)
    if has_option(model.network, "stochastic_depth_rate"):
        model = model.clone(stochastic_depth_rate=0.0)  # it would change the inputs of norms
    _, updates = model.apply(
        variables,
        preprocessing.normalise(jnp.asarray(batch.images), param_dtype(model.dtype)),
        train=True,
        rngs={"dropout": jax.random.key(0)},
        mutable=["batch_stats", "aux_logits"],
    )
    moments = updates["batch_stats"]
    if axis_name is None:
        return moments

    def over_replicas(own: dict[str, jax.Array]) -> dict[str, jax.Array]:
        mean = jax.lax.pmean(own["mean"], axis_name)
        return {"mean": mean, "var": jax.lax.pmean(own["var"] + (own["mean"] - mean) ** 2, axis_name)}

    return jax.tree.map(over_replicas, moments, is_leaf=_is_moments)


class Recalibration:
    """Computes the running statistics again over training images, preprocessed as in the test.

    They are the statistics of the whole population of batches of one size (Wu & Johnson 2021, section 3): the mean of
    the means, and the mean of the mean squares minus its square. These two are summed in float64, because they
    differ little if the mean is large.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        parallel: Parallel,
        compiling: Callable[[], None] = lambda: None,
    ) -> None:
        self._parallel = parallel
        self._preprocessing = preprocessing
        self._moments = parallel.wrap(
            partial(batch_moments, model=model, preprocessing=preprocessing, axis_name=parallel.axis_name),
            compiling=compiling,
        )

    def __call__(
        self,
        variables: Any,
        source: Source,
        config: Config,
        done: Callable[[int], None] = lambda count: None,
    ) -> Any:
        """The new batch_stats of `variables`, over as many images as the recipe says; `done` gets the images so far."""
        parallel, size, seed = self._parallel, config.recipe.batch_size, config.seed
        images = config.recipe.precise_batch_norm_images
        batches = max(1, min(images, len(source)) // size)
        process = (parallel.process_index, parallel.process_count)
        plan = (training_slots(seed, step, size, len(source), *process) for step in range(batches))
        squared = partial(jax.tree.map, _with_square, is_leaf=_is_moments)
        total: Any = None
        results = run_batches(self._moments, variables, source, self._preprocessing, plan, parallel)
        for number, result in enumerate(results):
            moments = squared(jax.tree.map(np.float64, result))
            total = moments if total is None else jax.tree.map(np.add, total, moments)
            done((number + 1) * size)

        def statistics(node: dict[str, np.ndarray], old: dict[str, Any]) -> dict[str, np.ndarray]:
            mean, square = node["mean"] / batches, node["square"] / batches
            var = np.maximum(square - mean**2, 0)
            return {"mean": mean.astype(old["mean"].dtype), "var": var.astype(old["var"].dtype)}

        return parallel.replicate(jax.tree.map(statistics, total, variables["batch_stats"], is_leaf=_is_moments))


def _is_moments(node: Any) -> bool:
    return "mean" in node


def _with_square(moments: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"mean": moments["mean"], "square": moments["var"] + moments["mean"] ** 2}
