"""The three ways of transfer learning, against torch, and what they leave alone."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnets
from jaxnets.data.pipeline import Batch
from jaxnets.data.preprocessing import NoPreprocessing
from jaxnets.errors import InputError
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipe import Recipe
from jaxnets.training.state import TrainState, create_state
from jaxnets.training.step import train_step
from jaxnets.transfer import HeadOnTrunk, frozen_modules, join, make_head, scale_by_layer, split, with_frozen_norms
from jaxnets.weights import to_torchvision
from tests.models.test_features import build, references
from tests.references import recipe as reference
from tests.tiers import slow_except
from tests.training.tiny import PLAIN

RECIPE = replace(
    PLAIN,
    optimizer="momentum",
    learning_rate=reference.LEARNING_RATE,
    momentum=reference.MOMENTUM,
    weight_decay=reference.WEIGHT_DECAY,
    decay_norms_and_biases=True,
)


def trained(
    model: Any, variables: Any, recipe: Recipe, transfer: str, train_from: str | None, parallel: Parallel
) -> Any:
    """The state after the reference's steps, the loss of the last, and the modules that were frozen."""
    pixels, count, classes = reference.TRANSFER_CASE
    frozen = frozen_modules(model, transfer, train_from, variables["params"])
    optimizer = recipe.make_optimizer(recipe.schedule_of(reference.STEPS, 1000))
    if recipe.layer_decay < 1:
        optimizer = optax.chain(optimizer, scale_by_layer(model, recipe.layer_decay))
    axis_name = parallel.axis_name
    network = (
        HeadOnTrunk(model, make_head(model, axis_name)) if transfer == "head" else with_frozen_norms(model, frozen)
    )
    step = parallel.wrap(
        partial(
            train_step,
            model=network,
            optimizer=optimizer,
            preprocessing=NoPreprocessing(),
            recipe=recipe,
            axis_name=axis_name,
        )
    )
    average = recipe.ema_decay > 0
    state = create_state(model, optimizer, 0, pixels, variables=variables, frozen=frozen, ema=average)
    state = parallel.replicate(state)
    labels = reference.labels(count, classes).astype(np.int32)
    copies = len(parallel.devices)
    images = np.tile(reference.random_images(pixels, count), (copies, 1, 1, 1))
    batch = parallel.put(Batch(images, np.tile(labels, copies), np.ones(len(images), bool)))
    for _ in range(reference.STEPS):
        state, sums = step(state, batch)
    return parallel.fetch(state), float(sums["loss"]) / len(images), frozen


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", reference.TRANSFERS)
def test_what_is_trained_follows_torch(name: str) -> None:
    arch, first, decay = reference.TRANSFERS[name]
    model, variables = build(arch)
    transfer = "full" if name == "layer_decay" else name
    recipe = replace(RECIPE, layer_decay=decay)
    one = Parallel.choose("jit")
    state, loss, _ = trained(model, variables, recipe, transfer, first if transfer == "partial" else None, one)
    expected = {key: value for key, value in references().items() if key.startswith(f"{name}/")}
    assert abs(loss - expected.pop(f"{name}/loss")) < 1e-9
    after = to_torchvision(arch, state.variables)
    assert len(after) == len(expected) > 0
    for key, tensor in after.items():
        value = expected[f"{name}/after/{key}"]
        assert np.abs(reference.fingerprint(key, tensor) - value).max() <= 1e-8 * value[0], key


@cache
def small(arch: str) -> tuple[Any, Any]:
    """A network of a family, small enough, with variables as if it were trained."""
    options: dict[str, Any] = {
        "resnet20_cifar": {"num_filters": 4, "stage_sizes": (1, 1, 3)},
        "resnet164_v2_cifar": {"num_filters": 4, "stage_sizes": (1, 1, 1)},
        "googlenet": {"aux_logits": False},
        "alexnet": {"hidden_features": 16},
    }[arch]
    model, variables = build(arch, jnp.float32, **options)
    return model, jax.tree.map(lambda leaf: leaf.astype(np.float32), {"batch_stats": {}, **variables})


ARCHS = ("resnet20_cifar", "resnet164_v2_cifar", "googlenet", "alexnet")


@pytest.mark.fast
@pytest.mark.parametrize("transfer", ["partial", "head"])
@pytest.mark.parametrize(
    ("arch", "devices"), slow_except([("resnet20_cifar", 1)], [*((arch, 1) for arch in ARCHS), ("resnet20_cifar", 3)])
)
def test_what_is_frozen_stays_as_it_is_to_the_bit(arch: str, transfer: str, devices: int) -> None:
    model, variables = small(arch)
    recipe = replace(RECIPE, optimizer="adamw", learning_rate=0.01, ema_decay=0.9, clip_norm=1.0)
    parallel = Parallel.choose("jit" if devices == 1 else "pmap", jax.devices()[:devices])
    state, _, frozen = trained(model, variables, recipe, transfer, None, parallel)
    before, changed = split(variables, frozen)
    for after in (state.frozen, split(state.variables, frozen)[0]):
        jax.tree.map(np.testing.assert_array_equal, after, before)
    assert frozen
    # There is nothing that could change them: no place among what is trained, nor in the optimiser's state.
    assert set(state.params) == set(changed["params"])
    assert set(state.batch_stats) == set(changed["batch_stats"])
    per_parameter = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in per_parameter) == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # All else moved, statistics included.
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), split(state.variables, frozen)[1], changed)
    assert all(jax.tree.leaves(moved))
    assert bool(state.batch_stats) == (transfer == "partial" and arch != "alexnet")


@pytest.mark.slow
def test_no_gradient_is_computed_of_what_is_frozen() -> None:
    model = jaxnets.create_model("resnet18", num_classes=10)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

    def flops(transfer: str) -> float:
        frozen = frozen_modules(model, transfer, None, shapes["params"])
        network: Any = with_frozen_norms(model, frozen)
        if transfer == "head":
            network = HeadOnTrunk(model, make_head(model))
        optimizer = RECIPE.make_optimizer(RECIPE.schedule_of(10, 100))
        state = jax.eval_shape(partial(create_state, model, optimizer, 0, 64, frozen=frozen))
        batch = Batch(np.zeros((2, 64, 64, 3), np.float32), np.zeros(2, np.int32), np.ones(2, bool))
        step = partial(train_step, model=network, optimizer=optimizer, preprocessing=NoPreprocessing(), recipe=RECIPE)
        analysis: Any = jax.jit(step).lower(state, batch).compile().cost_analysis()
        return analysis["flops"]

    images = jnp.zeros((2, 64, 64, 3))
    forward: Any = jax.jit(partial(model.apply, train=False)).lower(shapes, images).compile().cost_analysis()
    full, partial_, head = (flops(transfer) for transfer in ("full", "partial", "head"))
    assert head < 1.1 * forward["flops"] < 0.4 * full
    assert partial_ < 0.55 * full


@pytest.mark.slow
def test_the_head_phase_holds_the_rest_and_its_optimiser() -> None:
    model, variables = small("resnet20_cifar")
    recipe = replace(RECIPE, optimizer="adam", ema_decay=0.9)
    pixels, count, classes = reference.TRANSFER_CASE
    optimizer = recipe.make_optimizer(recipe.schedule_of(reference.STEPS, 1000))
    state = create_state(model, optimizer, 0, pixels, variables=variables, ema=True)
    held = set(state.params) - {"fc"}
    batch = Batch(
        reference.random_images(pixels, count).astype(np.float32),
        reference.labels(count, classes).astype(np.int32),
        np.ones(count, bool),
    )
    step = partial(train_step, optimizer=optimizer, preprocessing=NoPreprocessing(), recipe=recipe)
    head = jax.jit(partial(step, model=HeadOnTrunk(model, make_head(model)), frozen=held))
    after: TrainState = state
    for _ in range(3):
        after, _ = head(after, batch)
    for kind in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, split({kind: getattr(after, kind)}, held)[0][kind],
            split({kind: getattr(state, kind)}, held)[0][kind],
        )  # fmt: skip
    assert (after.params["fc"]["kernel"] != state.params["fc"]["kernel"]).any()
    moments = after.opt_state[2]
    for moment in (moments.mu, moments.nu):
        assert all(not np.asarray(leaf).any() for name in held for leaf in jax.tree.leaves(moment[name]))
        assert np.asarray(moment["fc"]["kernel"]).any()
    # As if only the head were there: the trunk frozen altogether.
    alone = create_state(model, optimizer, 0, pixels, variables=variables, ema=True, frozen=held)
    for _ in range(3):
        alone, _ = jax.jit(partial(step, model=HeadOnTrunk(model, make_head(model))))(alone, batch)
    np.testing.assert_array_equal(after.params["fc"]["kernel"], alone.params["fc"]["kernel"])
    # Then all is trained.
    after, _ = jax.jit(partial(step, model=model))(after, batch)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_partial_begins_where_at_most_half_of_the_parameters_are_left() -> None:
    expected = {"alexnet": "fc2", "googlenet": "inception5a", "resnet18": "layer4_1", "resnet50": "layer4_1"}
    for arch, first in expected.items():
        model: Any = jaxnets.create_model(
            arch, num_classes=10, **({"aux_logits": False} if arch == "googlenet" else {})
        )
        params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))[
            "params"
        ]
        frozen = frozen_modules(model, "partial", None, params)
        order = [module for modules in model.stages.values() for module in modules]
        assert order[len(frozen)] == first
        size = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
        kept = sum(size[name] for name in set(params) - set(frozen))
        assert kept <= sum(size.values()) / 2 < kept + size[frozen[-1]]


@pytest.mark.fast
def test_frozen_modules_are_those_before_the_stage() -> None:
    model = jaxnets.create_model("resnet18", num_classes=3)
    assert frozen_modules(model, "partial", "layer2", {}) == ["conv1", "bn1", "layer1_0", "layer1_1"]
    assert frozen_modules(model, "partial", "layer2.1", {})[-1] == "layer2_0"
    assert frozen_modules(model, "full", None, {}) == frozen_modules(model, None, None, {}) == []
    assert "fc" not in frozen_modules(model, "head", None, {})
    with pytest.raises(InputError, match="ResNet has no stage 'inception3a'"):
        frozen_modules(model, "partial", "inception3a", {})
    with pytest.raises(InputError, match="train_from=conv1 is the first stage"):
        frozen_modules(model, "partial", "conv1", {})


@pytest.mark.fast
def test_split_and_join_are_inverse() -> None:
    _, variables = small("resnet20_cifar")
    parts = split(variables, ["conv1", "layer2_0"])
    assert set(parts[0]["params"]) == {"conv1", "layer2_0"}
    assert set(parts[0]["batch_stats"]) == {"layer2_0"}
    jax.tree.map(np.testing.assert_array_equal, join(*parts), variables)


@pytest.mark.parametrize("arch", slow_except(["resnet20_cifar", "alexnet"], ARCHS))
def test_the_head_alone_is_the_networks_classifier(arch: str) -> None:
    model, variables = small(arch)
    images = reference.random_images(64, 2).astype(np.float32)
    composed = HeadOnTrunk(model, make_head(model))
    expected, actual = (
        jax.jit(partial(network.apply, train=False))(variables, images) for network in (model, composed)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("arch", "rate"), [("googlenet", 0.2), ("alexnet_2012", 0.5), ("alexnet", 0.0)])
def test_the_dropout_before_the_head_is_that_of_the_network(arch: str, rate: float) -> None:
    # The dropout of the trunk is off.
    assert make_head(jaxnets.create_model(arch)).dropout_rate == rate
