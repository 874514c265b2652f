"""All that training changes."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Parameters, statistics and what optimises them.

    `step` counts finished steps, `skipped` those in a row that were left out as they were not finite; `key` is the
    run's PRNG key as numbers. `batch_stats` is empty for networks without norms, `average` where no moving average of
    the variables is kept.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    skipped: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` reads in tests and later: the moving average, where there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}

    def with_batch_stats(self, batch_stats: Any) -> "TrainState":
        """The state with other running statistics beside the variables that are tested."""
        if self.average:
            return self.replace(average={**self.average, "batch_stats": batch_stats})  # type: ignore[attr-defined]
        return self.replace(batch_stats=batch_stats)  # type: ignore[attr-defined]


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, image_size: int, *, average: bool = False
) -> TrainState:
    """Freshly initialised state, a function of the seed alone."""

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        images = jnp.zeros((1, image_size, image_size, 3))
        variables = model.init(key, images, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            average={"params": params, "batch_stats": batch_stats} if average else {},
            skipped=jnp.zeros((), jnp.int32),
        )

    return create(jax.random.key(seed))


def moving_average(average: Any, variables: Any, step: jax.Array, decay: float) -> Any:
    """The average after one more step: it keeps `decay` of itself, and less, (1 + step) / (10 + step), at first.

    The ramp (as in TensorFlow's ExponentialMovingAverage) lets a short run forget its initial weights.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: (kept * old + (1 - kept) * new).astype(old.dtype), average, variables)
