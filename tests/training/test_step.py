"""The training step: its loss, its gradients, its chances, and what it does with numbers that are not finite."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.training import augmentations
from jaxnets.training.losses import binary_cross_entropy, cross_entropy, smoothed_targets, training_loss
from jaxnets.training.metrics import Totals, metric_sums
from jaxnets.training.state import create_state, moving_average
from jaxnets.training.step import evaluation_step
from tests.tiers import slow_except
from tests.training.tiny import (
    PLAIN,
    PREPROCESSING,
    Tiny,
    compiled_step,
    make_batch,
    make_state,
    make_variables,
    normalised,
    optimizer_of,
    step_of,
)

BATCH = make_batch()


def test_cross_entropy_is_the_formula() -> None:
    logits = np.random.RandomState(0).standard_normal((4, 5))
    labels = np.array([0, 4, 2, 2])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for smoothing in (0.0, 0.1):
        targets = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
        actual = cross_entropy(jnp.asarray(logits), smoothed_targets(labels, 5, smoothing))
        np.testing.assert_allclose(actual, -(targets * np.log(shares)).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary_cross_entropy_is_the_formula(threshold: float) -> None:
    logits, targets = np.random.RandomState(0).standard_normal((4, 5)), np.random.RandomState(1).uniform(size=(4, 5))
    expected = targets if threshold == 0 else np.where(targets > threshold, 1, 0)
    shares = 1 / (1 + np.exp(-logits))
    formula = -(expected * np.log(shares) + (1 - expected) * np.log(1 - shares)).mean(axis=1)
    actual = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), threshold)
    np.testing.assert_allclose(actual, formula, rtol=1e-5)
    assert binary_cross_entropy(jnp.asarray(logits, jnp.bfloat16), targets).dtype == jnp.float32


@pytest.mark.parametrize("given", [True, False])
def test_a_state_has_each_array_to_itself(given: bool) -> None:
    variables = make_variables(Tiny()) if given else None
    state = create_state(Tiny(), optimizer_of(PLAIN), 0, 8, ema=True, variables=variables)
    arrays = jax.tree.leaves((state, variables))
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(arrays)
    jax.block_until_ready(jax.jit(lambda used_up: jax.tree.map(jnp.add, used_up, used_up), donate_argnums=0)(state))
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(variables))


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


def test_the_step_is_gradient_descent_with_decay_on_kernels_alone() -> None:
    recipe = replace(PLAIN, learning_rate=0.5, weight_decay=0.01, label_smoothing=0.2)
    model = Tiny()
    state = make_state(recipe, make_variables(model))
    after, sums = compiled_step(recipe, model)(state, BATCH)
    inputs = jnp.asarray(normalised(BATCH.images), jnp.float32)

    def loss(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits: Any = model.apply(variables, inputs, train=True, mutable=["batch_stats"])[0]
        targets = 0.8 * jax.nn.one_hot(BATCH.labels, 3) + 0.2 / 3
        return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean(), logits

    (mean, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.5 * (g + 0.01 * p * (p.ndim > 1)), state.params, gradients)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), after.params, expected)
    assert after.step == 1
    # The loss is what is minimised, accuracy that of the labels.
    np.testing.assert_allclose(sums["loss"], 8 * mean, rtol=1e-5)
    assert sums["accuracy"] == (np.asarray(logits).argmax(-1) == BATCH.labels).sum()
    assert sums["count"] == 8


class Viewer:
    """Its logits are the images' mean colours; it has nothing to learn."""

    num_classes = 3

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def apply(self, variables: Any, inputs: jax.Array, *, train: bool, **_: Any) -> Any:
        logits = inputs.mean((1, 2)) + variables["params"]["bias"]
        return (logits, {"batch_stats": {}}) if train else logits


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("dtype", "error"),
    slow_except([(jnp.float64, 1e-13)], [(jnp.float64, 1e-13), (jnp.float32, 1e-6), (jnp.bfloat16, 1e-6)]),
)
def test_images_are_as_precise_as_the_network(dtype: Any, error: float) -> None:
    model, variables = Viewer(dtype), {"params": {"bias": jnp.zeros(3)}, "batch_stats": {}}
    logits = normalised(BATCH.images).mean((1, 2))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(shares[np.arange(8), BATCH.labels]).sum()
    _, trained = step_of(PLAIN, model)(make_state(PLAIN, variables), BATCH)
    _, _, tested = evaluation_step(variables, BATCH, model=model, preprocessing=PREPROCESSING)
    for sums in (trained, tested):
        assert abs(float(sums["loss"]) / expected - 1) < error


class Listener:
    """Notes the key that a network draws its own chances from."""

    num_classes = 3
    dtype = jnp.float32

    def __init__(self) -> None:
        self.keys: list[jax.Array] = []

    def apply(self, variables: Any, inputs: jax.Array, *, rngs: dict[str, jax.Array], **_: Any) -> Any:
        self.keys.append(rngs["dropout"])
        return variables["params"]["logits"], {"batch_stats": {}}


def test_every_kind_of_chance_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # fold_in(key, i) is split(key)[i]: a key that is split once more, or in another number, comes again.
    used: list[tuple[int, ...]] = []
    mixed: list[jax.Array] = []

    def note(keys: jax.Array) -> None:
        used.extend(map(tuple, np.atleast_2d(jax.random.key_data(keys)).tolist()))

    def spy(augmentation: augmentations.Augmentation) -> augmentations.Augmentation:
        def call(keys: jax.Array, images: jax.Array, *rest: Any) -> Any:
            note(keys)
            if augmentation.on == "batch":
                mixed.append(keys)
                return images, rest[0]
            return images

        return replace(augmentation, function=call if augmentation.function else None)

    monkeypatch.setattr(augmentations, "AUGMENTATIONS", tuple(map(spy, augmentations.AUGMENTATIONS)))
    model = Listener()
    chances = {"shift": 0.2, "flip": 0.5, "trivial_augment": True, "color_jitter": 0.4, "random_erasing": 0.5}
    recipe = replace(PLAIN, **chances, mixup_alpha=0.2, cutmix_alpha=1.0)  # type: ignore[arg-type]
    state = make_state(recipe, {"params": {"logits": jnp.zeros((2, 3))}, "batch_stats": {}})
    for number in range(2):
        step_of(recipe, model)(state.replace(step=jnp.int32(number)), make_batch(2))
    for key in model.keys:
        note(key)
    # In each step five for each of two images, one for mixing, one for the network; and what mixing draws from.
    assert len(used) == len(set(used)) == 2 * (5 * 2 + 1 + 1)
    children = {tuple(data) for key in mixed for data in jax.random.key_data(jax.random.split(key, 4)).tolist()}
    assert len(children) == 8
    assert not children & set(used)


def test_chance_follows_from_the_seed_and_the_step_alone() -> None:
    recipe, model = replace(PLAIN, shift=0.25), Tiny(dropout_rate=0.3)
    state = make_state(recipe, make_variables(model))
    step = compiled_step(recipe, model)
    first, again, later, elsewhere = (
        float(step(start, BATCH)[1]["loss"])
        for start in (
            state,
            state,
            state.replace(step=state.step + 1),
            state.replace(key=jax.random.key_data(jax.random.key(1))),
        )
    )
    assert first == again
    assert len({first, later, elsewhere}) == 3


def test_an_average_of_what_does_not_change_stays_as_it_is() -> None:
    values = {"mean": np.random.default_rng(0).standard_normal(1000, np.float32)}
    average = jax.jit(moving_average, static_argnums=3)(values, values, jnp.int32(7), 0.7)
    np.testing.assert_array_equal(average["mean"], values["mean"])


def test_a_new_state_follows_from_the_seed_alone() -> None:
    first, again, other = (create_state(Tiny(), optimizer_of(PLAIN), seed, 8, ema=True) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.params["conv1"]["kernel"] != other.params["conv1"]["kernel"]).all()
    assert (first.step, first.skipped) == (0, 0)
    jax.tree.map(np.testing.assert_array_equal, first.ema, {"params": first.params, "batch_stats": first.batch_stats})
    jax.tree.map(np.testing.assert_array_equal, first.variables, first.ema)
    assert create_state(Tiny(norm=None), optimizer_of(PLAIN), 0, 8).batch_stats == {}


class Faulty:
    """Its logits are its parameters; some part of it is infinite if asked."""

    num_classes = 3
    dtype = jnp.float32

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def apply(self, variables: Any, inputs: jax.Array, **_: Any) -> Any:
        logits, mean = variables["params"]["logits"], inputs.mean((0, 1, 2))
        infinity = jnp.exp(1000 + mean.sum())
        if self.fault == "loss":
            # The right answer is impossible; the slopes of the others know nothing of it.
            logits = logits.at[0, 0].set(-infinity)
        if self.fault == "gradients":
            # The root of 0, whose slope is infinite, times the slope of what is below it, which is 0.
            logits += jnp.sqrt(0 * jnp.square(logits))
        if self.fault == "statistics":
            mean += infinity
        return logits, {"batch_stats": {"mean": mean}}


@pytest.mark.parametrize("fault", ["loss", "gradients", "statistics"])
@pytest.mark.parametrize("count", slow_except([3000], [3, 3000]))
def test_a_step_that_is_not_finite_changes_nothing(fault: str, count: int) -> None:
    # The logits are few, or one large parameter.
    recipe = replace(PLAIN, optimizer="adam", ema_decay=0.5)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, count)), jnp.float32)
    state = make_state(recipe, {"params": {"logits": logits}, "batch_stats": {"mean": jnp.ones(3)}})
    model = Faulty(fault)
    good, bad = Faulty("none"), model
    good.num_classes = bad.num_classes = count  # type: ignore[misc]
    faulty = jax.jit(step_of(recipe, bad))
    step = jax.jit(step_of(recipe, good))

    state, sums = step(state, BATCH)
    assert (sums["skipped"], sums["skipped_in_a_row"], sums["count"]) == (0, 0, 8)
    after = state
    for number in (1, 2):
        after, sums = faulty(after, BATCH)
        kept = [(old.params, old.batch_stats, old.opt_state, old.ema, old.key) for old in (state, after)]
        for one, other in zip(*map(jax.tree.leaves, kept), strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        assert (after.step, after.skipped) == (1 + number, number)
        # Nothing that is not finite gets into the sums.
        assert {name: float(value) for name, value in sums.items()} == {
            "loss": 0, "accuracy": 0, "count": 0, "skipped": 1, "skipped_in_a_row": number,
        }  # fmt: skip
    after, sums = step(after, BATCH)
    assert (after.skipped, sums["skipped"], sums["skipped_in_a_row"]) == (0, 0, 0)
    expected, _ = step(state, BATCH)
    np.testing.assert_array_equal(after.params["logits"], expected.params["logits"])


def test_statistics_that_overflow_are_caught_where_the_loss_is_finite() -> None:
    # A variance beyond float32 makes all outputs of a norm its bias.
    variables = make_variables(Tiny())
    variables["params"]["conv1"]["kernel"] *= 1e18
    inputs = jnp.asarray(normalised(BATCH.images), jnp.float32)
    logits, updates = Tiny().apply(variables, inputs, train=True, mutable=["batch_stats"])
    assert np.isfinite(logits).all()
    assert np.isinf(updates["batch_stats"]["bn1"]["var"]).all()
    state = make_state(PLAIN, variables)
    after, sums = compiled_step(PLAIN, Tiny())(state, BATCH)
    assert sums["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)


def test_means_are_of_the_images_that_counted() -> None:
    totals = Totals()
    assert totals.means() == {"count": 0}
    totals.add({"loss": 0, "accuracy": 0, "count": 0, "skipped": 1})
    assert totals.means() == {"count": 0, "skipped": 1}
    totals.add({"loss": 6.0, "accuracy": 3, "count": 4, "skipped": 0})
    assert totals.means() == {"loss": 1.5, "accuracy": 0.75, "count": 4, "skipped": 1}
