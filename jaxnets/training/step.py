"""One step of training and one of evaluation, as pure functions of one replica, for any transformation to wrap."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxnets.data.augmentation import color_jitter, image_keys, mix, random_erasing, random_flip, random_shift
from jaxnets.data.pipeline import Batch
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.trivial_augment import trivial_augment
from jaxnets.models.layers import KEPT_OUTPUTS, param_dtype
from jaxnets.training.losses import smoothed_targets, training_loss
from jaxnets.training.metrics import Sums, metric_sums
from jaxnets.training.recipe import Recipe
from jaxnets.training.state import TrainState, moving_average
from jaxnets.transfer import join, split

_LARGE = 1 << 18


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    recipe: Recipe,
    axis_name: str | None = None,
    held: Collection[str] = (),
) -> tuple[TrainState, Sums]:
    """Takes one step on uint8 images [N, H, W, 3] and their labels [N] -> new state, metric sums.

    The modules `held` stay as they are in this step, as those in `state.frozen` do in all: no gradient is computed.

    All randomness follows from the state's key and step. With `axis_name`, N is one replica's share; gradients and
    statistics are averaged over the replicas and the sums added up. A step whose loss, gradients or statistics are not
    finite changes nothing but the counts of steps and of skipped ones.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    augment_key, dropout_key = jax.random.split(key)
    inputs, targets = training_inputs(
        augment_key, batch, model.num_classes, preprocessing, recipe, axis_name, param_dtype(model.dtype)
    )
    held_now, moving = split({"params": state.params, "batch_stats": state.batch_stats}, held)
    loss_of: Any = partial(_loss, fixed=join(state.frozen, held_now), model=model, recipe=recipe)
    if recipe.remat:
        loss_of = jax.checkpoint(loss_of, policy=jax.checkpoint_policies.save_only_these_names(*KEPT_OUTPUTS))
    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def part(batch_stats: Any, inputs: Any, targets: Any, labels: Any, number: Any) -> tuple[Any, Any]:
        dropout = jax.random.fold_in(dropout_key, number)
        (loss, (logits, batch_stats)), gradients = gradient(moving["params"], batch_stats, inputs, targets, dropout)
        # What is minimised, so with smoothed and mixed targets and auxiliary heads; accuracy is that of the labels.
        return batch_stats, (loss, gradients, metric_sums(logits, labels) | {"loss": loss * len(labels)})

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
        # XLA runs convolutions on the CPU many times slower inside of a loop.
        unroll = parts if jax.default_backend() == "cpu" else 1
        start = moving["batch_stats"], nothing
        (batch_stats, (loss, gradients, sums)), _ = jax.lax.scan(add, start, cut, unroll=unroll)
        loss, gradients = jax.tree.map(lambda total: total / parts, (loss, gradients))
    if axis_name is not None:
        loss, gradients = jax.lax.pmean((loss, gradients), axis_name)
        if recipe.batch_norm == "local":
            batch_stats = jax.lax.pmean(batch_stats, axis_name)
        sums = jax.lax.psum(sums, axis_name)

    finite = all_finite((loss, gradients, batch_stats))
    gradients |= jax.tree.map(jnp.zeros_like, held_now["params"])
    batch_stats |= held_now["batch_stats"]

    def updated() -> Any:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates) | held_now["params"]
        average = state.average
        if average:
            variables = {"params": params, "batch_stats": batch_stats}
            average = moving_average(average, variables, state.step, recipe.ema_decay)
        return params, batch_stats, _without(held, opt_state, state.opt_state), average

    before = state.params, state.batch_stats, state.opt_state, state.average
    params, batch_stats, opt_state, average = _chosen(finite, updated, before)
    state = TrainState(
        step=state.step + 1,
        key=state.key,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        average=average,
        skipped=jnp.where(finite, 0, state.skipped + 1),
        frozen=state.frozen,
    )
    sums = jax.tree.map(lambda value: jnp.where(finite, value, 0), sums)
    return state, sums | {"skipped": 1 - finite.astype(jnp.int32), "skipped_in_a_row": state.skipped}


def training_inputs(
    key: jax.Array,
    batch: Batch,
    num_classes: int,
    preprocessing: Preprocessing,
    recipe: Recipe,
    axis_name: str | None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Augmented, normalised images [N, H, W, 3] of `dtype` and target probabilities [N, K].

    Each image is changed by chances of its own.
    """
    images = jnp.asarray(batch.images)
    shift_key, flip_key, trivial_key, color_key, erasing_key, mix_key = jax.random.split(key, 6)
    keys = partial(image_keys, count=len(images), axis_name=axis_name)
    if recipe.shift:
        images = random_shift(keys(shift_key), images, round(recipe.shift * images.shape[1]))
    if recipe.flip:
        images = random_flip(keys(flip_key), images, recipe.flip)
    if recipe.trivial_augment:
        images = trivial_augment(keys(trivial_key), images)
    if recipe.color_jitter:
        images = color_jitter(keys(color_key), images, recipe.color_jitter)
    inputs = preprocessing.normalise(images, dtype)
    if recipe.random_erasing:
        inputs = random_erasing(keys(erasing_key), inputs, recipe.random_erasing)
    targets = smoothed_targets(jnp.asarray(batch.labels), num_classes, recipe.label_smoothing)
    if recipe.mixup_alpha or recipe.cutmix_alpha:
        inputs, targets = mix(mix_key, inputs, targets, recipe.mixup_alpha, recipe.cutmix_alpha)
    return inputs, targets


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


def _without(held: Collection[str], new: Any, old: Any) -> Any:
    """The new state of the optimiser, but the old of the modules `held`, by whose names optax keeps what is theirs."""

    def choose(path: Any, after: Any, before: Any) -> Any:
        names = (getattr(key, "key", None) for key in path)
        return before if next((name for name in names if name in held), None) else after

    return jax.tree_util.tree_map_with_path(choose, new, old) if held else new


def _chosen(finite: jax.Array, updated: Callable[[], Any], before: Any) -> Any:
    """What `updated` computes if all was finite, else what was before."""
    if jax.default_backend() == "cpu":
        # Done in place so, while a choice number by number costs XLA's CPU programs a copy of all that was: AlexNet's
        # step took 0.29 s so, and takes 0.25 s. A GPU would have to wait for the host to branch.
        return jax.lax.cond(finite, updated, lambda: before)
    return jax.tree.map(partial(jnp.where, finite), updated(), before)


def all_finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite, and so is the sum of their squares (in float32 up to 1e19 or so)."""
    # All but the largest as one vector: a test of each by itself takes XLA up to four times as long to compile.
    leaves = [leaf.ravel() for leaf in jax.tree.leaves(tree)]
    large = [leaf for leaf in leaves if leaf.size > _LARGE]
    small = jnp.concatenate([leaf for leaf in leaves if leaf.size <= _LARGE])
    return jnp.isfinite(sum(jnp.vdot(leaf, leaf) for leaf in (small, *large)))


def evaluation_step(
    variables: Any,
    batch: Batch,
    *,
    model: Any,
    preprocessing: Preprocessing,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, Sums]:
    """Probabilities [N, K], labels [N] and metric sums of uint8 images [N, H, W, 3]; masked images count for nothing.

    With `axis_name` all three are those of the whole batch.
    """
    inputs = preprocessing.normalise(jnp.asarray(batch.images), param_dtype(model.dtype))
    logits = model.apply(variables, inputs, train=False)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    labels = jnp.asarray(batch.labels)
    sums = metric_sums(logits, labels, jnp.asarray(batch.mask))
    if axis_name is not None:
        probabilities, labels = jax.lax.all_gather((probabilities, labels), axis_name, tiled=True)
        sums = jax.lax.psum(sums, axis_name)
    return probabilities, labels, sums
