"""One step of training and one of evaluation, as pure functions for any transformation to wrap."""

from typing import Any

import flax
import flax.linen as nn
import jax
import optax

from jaxnets.data.augmentation import color_jitter, image_keys, mix, random_erasing, random_flip, random_shift
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.training.losses import smoothed_targets, training_loss
from jaxnets.training.metrics import Sums, metric_sums
from jaxnets.training.recipes import Recipe


@flax.struct.dataclass
class TrainState:
    """All that training changes. `step` counts finished steps; `batch_stats` is empty for networks without norms."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` reads."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(model: nn.Module, optimizer: optax.GradientTransformation, seed: int, image_size: int) -> TrainState:
    """Freshly initialised state, a function of the seed alone."""

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        images = jax.numpy.zeros((1, image_size, image_size, 3))
        variables = model.init(key, images, train=False)
        params = variables["params"]
        return TrainState(
            step=jax.numpy.zeros((), jax.numpy.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
        )

    return create(jax.random.key(seed))


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    recipe: Recipe,
    seed: int,
    axis_name: str | None = None,
) -> tuple[TrainState, Sums]:
    """Augments, normalises, and takes one step: uint8 images [N, H, W, 3], labels [N] -> new state, metric sums.

    All randomness here follows from (seed, step). With `axis_name`, N is one replica's share; gradients and statistics
    are averaged over the replicas and the sums added up.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), 6)
    shift_key, dropout_key, flip_key, color_key, erasing_key, mix_key = keys
    if axis_name is not None:
        replica = jax.lax.axis_index(axis_name)
        shift_key, dropout_key = (jax.random.fold_in(key, replica) for key in (shift_key, dropout_key))
    if recipe.shift:
        images = random_shift(shift_key, images, round(recipe.shift * images.shape[1]))
    if recipe.flip:
        images = random_flip(image_keys(flip_key, len(images), axis_name), images, recipe.flip)
    if recipe.color_jitter:
        images = color_jitter(image_keys(color_key, len(images), axis_name), images, recipe.color_jitter)
    inputs = preprocessing.normalise(images)
    if recipe.random_erasing:
        inputs = random_erasing(image_keys(erasing_key, len(images), axis_name), inputs, recipe.random_erasing)
    targets = smoothed_targets(labels, model.num_classes, recipe.label_smoothing)
    if recipe.mixup_alpha or recipe.cutmix_alpha:
        inputs, targets = mix(mix_key, inputs, targets, recipe.mixup_alpha, recipe.cutmix_alpha)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats", "aux_logits"],
        )
        loss = training_loss(
            logits,
            jax.tree.leaves(updates.get("aux_logits", {})),
            targets,
            aux_weight=recipe.aux_weight,
        )
        return loss, (logits, updates.get("batch_stats", {}))

    (_, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    sums = metric_sums(logits, labels)
    if axis_name is not None:
        gradients, batch_stats = jax.lax.pmean((gradients, batch_stats), axis_name)
        sums = jax.lax.psum(sums, axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), sums


def evaluation_step(
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    model: nn.Module,
    preprocessing: Preprocessing,
) -> tuple[jax.Array, Sums]:
    """Probabilities [N, K] and metric sums of uint8 images [N, H, W, 3]; masked images count for nothing."""
    logits: Any = model.apply(variables, preprocessing.normalise(images), train=False)
    return jax.nn.softmax(logits.astype(jax.numpy.float32)), metric_sums(logits, labels, mask)
