"""The training step: its loss, its gradients over replicas, its optimisers."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnets
import jaxnets.training.step as training_step
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.training.losses import cross_entropy, smoothed_targets, training_loss
from jaxnets.training.metrics import metric_sums
from jaxnets.training.optimizers import OPTIMIZERS, make_optimizer, warmup_cosine
from jaxnets.training.recipes import Recipe, default_recipe
from jaxnets.training.step import create_state, train_step

PREPROCESSING = Preprocessing(8, 8, (0.3, 0.3, 0.3), (0.4, 0.4, 0.4))
RECIPE = Recipe(image_size=8, epochs=1, batch_size=8, optimizer="momentum", learning_rate=0.1, weight_decay=1e-3)


def batch(count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.RandomState(0)
    return stream.randint(0, 256, (count, 8, 8, 3)).astype(np.uint8), np.arange(count, dtype=np.int32) % 3


def make_step(recipe: Recipe = RECIPE, axis_name: str | None = None, **options: Any) -> tuple[Any, Any]:
    model = jaxnets.create_model("resnet20_cifar", num_classes=3, stage_sizes=(1, 1), axis_name=axis_name, **options)
    optimizer = make_optimizer(recipe.optimizer, optax.constant_schedule(recipe.learning_rate), recipe.weight_decay)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        preprocessing=PREPROCESSING,
        recipe=recipe,
        seed=0,
        axis_name=axis_name,
    )
    return step, create_state(model.clone(axis_name=None), optimizer, 0, 8)


def test_cross_entropy_is_the_formula() -> None:
    logits = np.random.RandomState(0).standard_normal((4, 5))
    labels = np.array([0, 4, 2, 2])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for smoothing in (0.0, 0.1):
        targets = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
        actual = cross_entropy(jnp.asarray(logits), smoothed_targets(labels, 5, smoothing))
        np.testing.assert_allclose(actual, -(targets * np.log(shares)).sum(axis=1), rtol=1e-5)


def test_auxiliary_heads_count_with_their_weight() -> None:
    logits, first, second = np.random.RandomState(0).standard_normal((3, 4, 5)).astype(np.float32)
    targets = smoothed_targets(np.array([0, 4, 2, 2]), 5)
    expected = sum(
        w * cross_entropy(jnp.asarray(x), targets).mean() for w, x in ((1, logits), (0.3, first), (0.3, second))
    )
    actual = training_loss(jnp.asarray(logits), [first, second], targets, aux_weight=0.3)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_masked_images_count_for_nothing() -> None:
    logits = jnp.asarray(np.random.RandomState(0).standard_normal((5, 4)), jnp.float32)
    labels, mask = jnp.array([0, 1, 2, 3, 0]), jnp.array([True, True, False, True, False])
    actual, expected = metric_sums(logits, labels, mask), metric_sums(logits[mask], labels[mask])
    assert expected["count"] == 3
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6)


AUGMENTED = replace(RECIPE, flip=0.5, color_jitter=0.4, random_erasing=0.5, mixup_alpha=0.2, cutmix_alpha=1.0)


@pytest.mark.parametrize("recipe", [RECIPE, AUGMENTED])
def test_replicas_together_take_the_step_of_one_device(recipe: Recipe) -> None:
    images, labels = batch()
    single, state = make_step(recipe)
    several, _ = make_step(recipe, axis_name="replicas")
    expected, expected_sums = jax.jit(single)(state, images, labels)

    def shard(array: np.ndarray) -> np.ndarray:
        return array.reshape(4, 2, *array.shape[1:])

    actual, sums = jax.jit(jax.vmap(several, in_axes=(None, 0, 0), axis_name="replicas"))(
        state, shard(images), shard(labels)
    )
    for replica in range(4):
        jax.tree.map(
            lambda a, e, r=replica: np.testing.assert_allclose(a[r], e, atol=2e-5),
            (actual.params, actual.batch_stats, sums),
            (expected.params, expected.batch_stats, expected_sums),
        )


def test_the_step_is_gradient_descent_with_decay_on_kernels_alone() -> None:
    recipe = Recipe(
        image_size=8, epochs=1, batch_size=8, optimizer="sgd", learning_rate=0.5, weight_decay=0.01, label_smoothing=0.2
    )
    step, state = make_step(recipe)
    images, labels = batch()
    after, _ = jax.jit(step)(state, images, labels)
    model = step.keywords["model"]

    def loss(params: Any) -> Any:
        logits, _ = model.apply(
            {"params": params, "batch_stats": state.batch_stats}, PREPROCESSING.normalise(images), train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        targets = 0.8 * jax.nn.one_hot(labels, 3) + 0.2 / 3
        return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean()

    gradients = jax.jit(jax.grad(loss))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.5 * (g + 0.01 * p * (p.ndim > 1)), state.params, gradients)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), after.params, expected)
    assert after.step == 1


@pytest.mark.parametrize("name", ["flip", "color_jitter", "random_erasing", "mixup_alpha", "cutmix_alpha"])
def test_every_augmentation_changes_the_step(name: str) -> None:
    images, labels = batch()
    plain, state = make_step()
    changed, _ = make_step(replace(RECIPE, **{name: 0.8}))
    # Of one batch chance may leave all as it is.
    states = [state.replace(step=state.step + number) for number in range(3)]
    plain_losses, losses = ([float(jax.jit(f)(s, images, labels)[1]["loss"]) for s in states] for f in (plain, changed))
    assert plain_losses[0] == plain_losses[1]
    assert len({*losses, plain_losses[0]}) > 1


def test_every_kind_of_chance_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # fold_in(key, i) is split(key)[i]: a key that is split once more, or in another number, comes again.
    used: list[tuple[int, ...]] = []

    def note(key: jax.Array) -> jax.Array:
        used.extend(map(tuple, np.atleast_2d(jax.random.key_data(key)).tolist()))
        return key

    for name in ("random_shift", "random_flip", "color_jitter", "random_erasing", "mix"):
        original = getattr(training_step, name)
        monkeypatch.setattr(training_step, name, lambda key, *rest, original=original: original(note(key), *rest))
    recipe = replace(AUGMENTED, shift=0.2)
    step, state = make_step(recipe)
    with jax.disable_jit():
        step(state, *batch(2))
    # A shift and a mix for the batch; flip, colour and erasing for each of two images; and what their owners draw from.
    shift, mix = used[0], used[-1]
    assert len(used) == len(set(used)) == 8
    inner = [jax.random.split(jax.random.wrap_key_data(jnp.asarray(key, jnp.uint32)), 4) for key in (shift, mix)]
    children = {tuple(data) for keys in inner for data in jax.random.key_data(keys).tolist()}
    assert len(children) == 8
    assert not children & set(used)


def test_chance_follows_from_the_seed_and_the_step_alone() -> None:
    recipe = Recipe(
        image_size=8, epochs=1, batch_size=8, optimizer="sgd", learning_rate=0.1, weight_decay=0.0, shift=0.25
    )
    step, state = make_step(recipe)
    images, labels = batch()
    jitted = jax.jit(step)
    first, again = (jitted(state, images, labels)[1] for _ in range(2))
    later = jitted(state.replace(step=state.step + 1), images, labels)[1]
    assert first["loss"] == again["loss"] != later["loss"]


def test_schedule_warms_up_and_ends_at_zero() -> None:
    schedule = warmup_cosine(0.4, 100, 10)
    values = [float(schedule(step)) for step in range(101)]
    np.testing.assert_allclose(values[:11], np.linspace(0.4 / 11, 0.4, 11), atol=1e-7)
    np.testing.assert_allclose(values[10:], 0.2 * (1 + np.cos(np.pi * np.arange(91) / 90)), atol=1e-6)
    # A short run is not all warm-up.
    assert float(warmup_cosine(0.4, 1, 5)(0)) == pytest.approx(0.4)
    assert float(warmup_cosine(0.4, 50, 50)(10)) == pytest.approx(0.4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_a_batch_by_heart(name: str) -> None:
    rate = {"sgd": 0.1, "momentum": 0.05, "adagrad": 0.05, "rmsprop": 0.003, "adam": 0.01}[name]
    recipe = Recipe(
        image_size=8, epochs=1, batch_size=8, optimizer=name, learning_rate=rate, weight_decay=0.0, label_smoothing=0.0
    )
    step, state = make_step(recipe)
    images, labels = batch()
    jitted = jax.jit(step)
    losses = []
    for _ in range(60):
        state, sums = jitted(state, images, labels)
        losses.append(float(sums["loss"] / sums["count"]))
    assert losses[-1] < 0.1 < losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"image_size": -8}, "image_size=-8"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"learning_rate": -1}, "learning_rate=-1"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"flip": 1.5}, "flip=1.5; expected a share from 0 to 1"),
        ({"crop_pct": 1e-12}, "crop_pct=1e-12"),
        ({"min_crop_area": 2}, "min_crop_area=2"),
        ({"mixup_alpha": -0.2}, "mixup_alpha=-0.2"),
        ({"optimizer": "adm"}, "unknown optimizer 'adm'.*adam"),
    ],
)
def test_recipes_refuse_what_cannot_train(change: dict[str, Any], message: str) -> None:
    values = {
        "image_size": 8,
        "epochs": 1,
        "batch_size": 8,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
    }
    with pytest.raises(InputError, match=message):
        Recipe(**(values | change))


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_every_network_takes_the_images_of_its_recipe(dataset: str) -> None:
    for name in jaxnets.list_models():
        model = jaxnets.create_model(name, num_classes=10)
        assert default_recipe(name, dataset).image_size >= model.smallest_image
