"""The state of training."""

from collections.abc import Collection
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxnets.models.initialization import Declaration, initial_variables
from jaxnets.transfer import join, split


@flax.struct.dataclass
class TrainState:
    """Parameters, statistics and the state of the optimiser.

    `step` counts finished steps, `skipped` the latest consecutive steps that were skipped because they were not finite.
    `key` is the data of the run's PRNG key. `batch_stats` is empty for networks without norms. `ema` is the exponential
    moving average of the variables, or empty. `frozen` holds the variables of the modules that are not trained.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    skipped: jax.Array
    frozen: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the trained network: the moving average if there is one, and the frozen modules."""
        return join(self.frozen, self.ema or {"params": self.params, "batch_stats": self.batch_stats})

    def with_variables(self, variables: Any) -> "TrainState":
        """The state with other `variables`."""
        kept, trained = split(variables, self.frozen.get("params", {}))
        values = {"ema": trained} if self.ema else trained
        return self.replace(frozen=kept if self.frozen else {}, **values)  # type: ignore[attr-defined]

    def with_batch_stats(self, batch_stats: Any) -> "TrainState":
        """The state with other running statistics in `variables`; those of frozen modules stay."""
        batch_stats = {name: batch_stats[name] for name in self.batch_stats}
        if self.ema:
            return self.replace(ema={**self.ema, "batch_stats": batch_stats})  # type: ignore[attr-defined]
        return self.replace(batch_stats=batch_stats)  # type: ignore[attr-defined]


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_size: int,
    *,
    ema: bool = False,
    variables: Any = None,
    frozen: Collection[str] = (),
    declared: Declaration | None = None,
) -> TrainState:
    """The state before the first step, with `variables` or with initial ones that follow from the seed alone.

    `frozen` names the modules that are not trained. `declared` is the network's declaration, if it is known.
    """

    # A step donates the state, so each array must be in it once, and be shared with nobody.
    own = partial(jax.tree.map, jnp.copy)
    key = jax.random.key(seed)
    variables = initial_variables(model, key, image_size, declared) if variables is None else jax.jit(own)(variables)
    kept, trained = split({"batch_stats": {}, **variables}, frozen)

    @jax.jit
    def create(key: jax.Array, params: Any, batch_stats: Any) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params={},
            batch_stats={},
            opt_state=own(optimizer.init(params)),
            ema=own({"params": params, "batch_stats": batch_stats}) if ema else {},
            skipped=jnp.zeros((), jnp.int32),
        )

    operands = key, trained["params"], trained["batch_stats"]
    if jax.default_backend() == "cpu" and not isinstance(key, jax.core.Tracer):
        # Optimisation would double the time of compilation.
        state = create.lower(*operands).compile({"xla_backend_optimization_level": "0"})(*operands)
    else:
        state = create(*operands)
    return state.replace(**trained, frozen=kept if frozen else {})


def moving_average(average: Any, variables: Any, step: jax.Array, decay: float) -> Any:
    """The average after one more step, which keeps the share min(decay, (1 + step) / (10 + step)) of the old average.

    The ramp at the start, as in TensorFlow's ExponentialMovingAverage, lets a short run forget its initial weights.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    # In this form, a value that does not change stays exactly the same.
    return jax.tree.map(lambda old, new: (old + (1 - kept) * (new - old)).astype(old.dtype), average, variables)
