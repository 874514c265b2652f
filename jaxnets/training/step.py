"""One training step and one evaluation step, as pure functions of one replica that any transformation can wrap."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnets.data.pipeline import Batch
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.models.layers import KEPT_OUTPUTS, param_dtype
from jaxnets.training.augmentations import training_inputs
from jaxnets.training.class_weights import weighted_targets
from jaxnets.training.gradients import NORMS, layer_norms
from jaxnets.training.losses import training_loss
from jaxnets.training.metrics import Metrics, Sums, metric_sums
from jaxnets.training.recipe import Recipe
from jaxnets.training.state import TrainState, moving_average
from jaxnets.training.views import logits_of_views
from jaxnets.transfer import join, split

_LARGE = 1 << 18
_COLUMNS = 256


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    recipe: Recipe,
    axis_name: str | None = None,
    frozen: Collection[str] = (),
    metrics: Metrics | None = None,
    class_weights: np.ndarray | None = None,
    layers: Sequence[str] = (),
) -> tuple[TrainState, Sums]:
    """One training step on uint8 images [N, H, W, 3] and labels [N]; returns the new state and sums of metrics.

    The modules `frozen` are not trained in this step, and those in `state.frozen` in none. All random numbers follow
    from the key and the step of the state. With `axis_name`, N is one replica's share; gradients and statistics are
    averaged over the replicas, and sums are added up. If the loss, a gradient, a statistic or a trained parameter is
    not finite, the step changes only the number of steps and of skipped steps. With `layers` the sums also hold the
    norms [L] of the gradients of these layers, before they are clipped.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    augment_key, dropout_key = jax.random.split(key)
    inputs, targets = training_inputs(
        augment_key,
        batch,
        model.num_classes,
        preprocessing,
        recipe,
        recipe.label_smoothing,
        axis_name,
        param_dtype(model.dtype),
    )
    if class_weights is not None:
        targets = weighted_targets(targets, class_weights, recipe.label_smoothing, axis_name)
    frozen_now, moving = split({"params": state.params, "batch_stats": state.batch_stats}, frozen)
    loss_of: Any = partial(_loss, fixed=join(state.frozen, frozen_now), model=model, recipe=recipe)
    if recipe.remat:
        loss_of = jax.checkpoint(loss_of, policy=jax.checkpoint_policies.save_only_these_names(*KEPT_OUTPUTS))
    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def part(batch_stats: Any, inputs: Any, targets: Any, labels: Any, number: Any) -> tuple[Any, Any]:
        dropout = jax.random.fold_in(dropout_key, number)
        (loss, (logits, batch_stats)), gradients = gradient(moving["params"], batch_stats, inputs, targets, dropout)
        # The loss that is minimised, with smoothed and mixed targets and auxiliary heads; the metrics use the labels.
        sums = metric_sums(logits, labels, metrics=metrics) | {"loss": loss * len(labels)}
        return batch_stats, (loss, gradients, sums)

    labels, parts = jnp.asarray(batch.labels), recipe.accumulation
    if parts == 1:
        batch_stats, (loss, gradients, sums) = part(moving["batch_stats"], inputs, targets, labels, 0)
    else:
        cut = [array.reshape(parts, -1, *array.shape[1:]) for array in (inputs, targets, labels)]
        cut.append(jnp.arange(parts))
        _, shapes = jax.eval_shape(part, moving["batch_stats"], *(array[0] for array in cut))

        def add(totals: Any, now: Any) -> tuple[Any, None]:
            batch_stats, more = part(totals[0], *now)
            return (batch_stats, jax.tree.map(jnp.add, totals[1], more)), None

        nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        # On the CPU, XLA runs convolutions many times slower inside a loop.
        unroll = parts if jax.default_backend() == "cpu" else 1
        start = moving["batch_stats"], nothing
        (batch_stats, (loss, gradients, sums)), _ = jax.lax.scan(add, start, cut, unroll=unroll)
        loss, gradients = jax.tree.map(lambda total: total / parts, (loss, gradients))
    if axis_name is not None:
        loss, gradients = jax.lax.pmean((loss, gradients), axis_name)
        if recipe.batch_norm == "local":
            batch_stats = jax.lax.pmean(batch_stats, axis_name)
        sums = jax.lax.psum(sums, axis_name)

    # A ReLU may turn NaN of a weight into 0 before it reaches the loss.
    finite = all_finite((loss, gradients, batch_stats, state.params))
    gradients |= jax.tree.map(jnp.zeros_like, frozen_now["params"])
    batch_stats |= frozen_now["batch_stats"]

    def updated() -> Any:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates) | frozen_now["params"]
        ema = state.ema
        if ema:
            variables = {"params": params, "batch_stats": batch_stats}
            ema = moving_average(ema, variables, state.step, recipe.ema_decay)
        return params, batch_stats, _keep_frozen(frozen, opt_state, state.opt_state), ema

    before = state.params, state.batch_stats, state.opt_state, state.ema
    params, batch_stats, opt_state, ema = _select(finite, updated, before)
    state = TrainState(
        step=state.step + 1,
        key=state.key,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=ema,
        skipped=jnp.where(finite, 0, state.skipped + 1),
        frozen=state.frozen,
    )
    sums = jax.tree.map(lambda value: jnp.where(finite, value, 0), sums)
    if layers:
        sums[NORMS] = layer_norms(gradients, layers)
    return state, sums | {"skipped": 1 - finite.astype(jnp.int32), "skipped_in_a_row": state.skipped}


def _loss(
    params: Any,
    batch_stats: Any,
    inputs: jax.Array,
    targets: jax.Array,
    dropout_key: jax.Array,
    *,
    fixed: Any,
    model: Any,
    recipe: Recipe,
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    logits, updates = model.apply(
        join(fixed, {"params": params, "batch_stats": batch_stats}),
        inputs,
        train=True,
        rngs={"dropout": dropout_key},
        mutable=["batch_stats", "aux_logits"],
    )
    loss = training_loss(
        logits,
        jax.tree.leaves(updates.get("aux_logits", {})),
        targets,
        loss=recipe.loss,
        target_threshold=recipe.target_threshold,
        aux_weight=recipe.aux_weight,
    )
    new = updates.get("batch_stats", batch_stats)
    return loss, (logits, {name: new[name] for name in batch_stats})


def _keep_frozen(frozen: Collection[str], new: Any, old: Any) -> Any:
    """The new state of the optimiser, except for the modules `frozen`, whose old state is kept.

    optax keeps the state of a module under the name of the module.
    """

    def choose(path: Any, after: Any, before: Any) -> Any:
        names = (getattr(key, "key", None) for key in path)
        return before if next((name for name in names if name in frozen), None) else after

    return jax.tree_util.tree_map_with_path(choose, new, old) if frozen else new


def _select(finite: jax.Array, updated: Callable[[], Any], before: Any) -> Any:
    """The result of `updated()` if all is finite, otherwise `before`."""
    if jax.default_backend() == "cpu":
        # A branch works in place, whereas jnp.where makes XLA's CPU programs copy all arrays. On a GPU a branch has to
        # wait for the host.
        return jax.lax.cond(finite, updated, lambda: before)
    return jax.tree.map(partial(jnp.where, finite), updated(), before)


def all_finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite, and so are their squares.

    The test is by matrix products: on the CPU, XLA's compiled maxima lose NaN, and where `compile` makes XLA keep it,
    its sums are slow.
    """
    leaves = jax.tree.leaves(tree)
    # All but the large arrays as one matrix: a test of each array takes XLA up to four times as long to compile.
    small = [leaf.ravel() for leaf in leaves if leaf.size <= _LARGE]
    rest = jnp.zeros(-sum(leaf.size for leaf in small) % _COLUMNS, jnp.result_type(*leaves))
    matrix = jnp.concatenate([*small, rest]).reshape(-1, _COLUMNS)
    return jnp.isfinite(sum(map(_products, (matrix, *(leaf for leaf in leaves if leaf.size > _LARGE)))))


def _products(array: jax.Array) -> jax.Array:
    """A sum over an array [..., C] that is not finite if one of the numbers, or its square, is not."""
    rows = array.reshape(-1, array.shape[-1])
    return (rows @ jnp.full(rows.shape[1], np.sqrt(jnp.finfo(array.dtype).max), array.dtype)).sum()


def evaluation_step(
    variables: Any,
    batch: Batch,
    *,
    model: Any,
    preprocessing: Preprocessing,
    axis_name: str | None = None,
    metrics: Metrics | None = None,
    tta: str | None = None,
) -> tuple[jax.Array, jax.Array, Sums]:
    """Probabilities [N, K], labels [N] and sums of metrics of uint8 images [N, H, W, 3].

    With `tta` they are those of several views. The sums leave out masked images. With `axis_name` all three are those
    of the whole batch.
    """
    logits = logits_of_views(model, variables, preprocessing, jnp.asarray(batch.images), tta)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    labels = jnp.asarray(batch.labels)
    sums = metric_sums(logits, labels, jnp.asarray(batch.mask), metrics)
    if axis_name is not None:
        probabilities, labels = jax.lax.all_gather((probabilities, labels), axis_name, tiled=True)
        sums = jax.lax.psum(sums, axis_name)
    return probabilities, labels, sums
