"""Blocks that are repeated against the same blocks written out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.models import depth
from tests.tiers import slow_except

KEY = jax.random.key(0)
CASES = {
    "resnet20_cifar": {"stage_sizes": (3, 2), "num_filters": 4},
    "resnet164_v2_cifar": {"stage_sizes": (3, 2), "num_filters": 4},
    "resnext29_8x64d_cifar": {"stage_sizes": (4,), "num_filters": 8, "groups": 2, "width_per_group": 16},
}


def stacked(tree: dict[str, Any], sizes: tuple[int, ...]) -> dict[str, Any]:
    """The blocks after a stage's first as one, with one more axis in front."""
    tree = dict(tree)
    for stage, size in enumerate(sizes, 1):
        rest = [tree.pop(f"layer{stage}_{i}") for i in range(1, size)]
        tree[f"layer{stage}_rest"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rest)
    return tree


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "train"),
    slow_except([], [*((name, True) for name in CASES), ("resnet20_cifar", False)]),
)
def test_outputs_statistics_and_gradients_are_the_same(name: str, train: bool) -> None:
    options = CASES[name]
    written, repeated = (
        jaxnets.create_model(name, num_classes=3, dtype=jnp.float64, repeated_blocks=flag, **options)
        for flag in (False, True)
    )
    images = jax.random.normal(KEY, (4, 8, 8, 3), jnp.float64)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(random.uniform(0.1, 1, leaf.shape)),
        jax.eval_shape(partial(written.init, train=False), KEY, images),
    )
    both = {kind: stacked(tree, options["stage_sizes"]) for kind, tree in variables.items()}
    shapes = jax.eval_shape(partial(repeated.init, train=False), KEY, images)
    assert jax.tree.map(lambda leaf: leaf.shape, both) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    def run(model: Any, variables: Any) -> Any:
        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            logits, updates = model.apply(given, images, train=train, mutable=["batch_stats"])
            return jnp.sin(logits).sum(), updates["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (value, stats), gradients = jax.jit(partial(run, written))(variables)
    (ours, our_stats), our_gradients = jax.jit(partial(run, repeated))(both)
    np.testing.assert_allclose(ours, value, atol=1e-10)
    for actual, expected in ((our_stats, stats), (our_gradients, gradients)):
        pairs = jax.tree.map(lambda a, b: (a, b), actual, stacked(expected, options["stage_sizes"]))
        for one, other in jax.tree.leaves(pairs, is_leaf=lambda leaf: isinstance(leaf, tuple)):
            np.testing.assert_allclose(one, other, atol=1e-8 * max(1.0, float(jnp.abs(other).max())))


@pytest.mark.usefixtures("float64")
def test_blocks_that_are_computed_again_give_the_same_with_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"stage_sizes": (9, 2), "num_filters": 4, "stochastic_depth_rate": 0.5}
    model = jaxnets.create_model("resnet1202_cifar", num_classes=3, dtype=jnp.float64, **options)
    images = jax.random.normal(KEY, (4, 8, 8, 3), jnp.float64)
    variables = jaxnets.init(model, KEY, image_size=8)

    def compiled() -> Any:
        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            logits, updates = model.apply(given, images, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
            return jnp.sin(logits).sum(), updates["batch_stats"]

        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return gradient.lower(variables["params"]).compile()

    thrifty = compiled()
    monkeypatch.setattr(depth.nn, "remat", lambda block, **_: block)
    plain = compiled()
    assert thrifty.memory_analysis().temp_size_in_bytes < 0.6 * plain.memory_analysis().temp_size_in_bytes
    ours, expected = (program(variables["params"]) for program in (thrifty, plain))
    # The loss and the statistics, which are updated once, and the gradients.
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * max(1.0, float(jnp.abs(other).max())))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(ours))


@pytest.mark.slow
def test_blocks_start_from_draws_of_their_own() -> None:
    model = jaxnets.create_model("resnet1202_cifar", num_classes=10, stage_sizes=(4,), num_filters=4)
    kernels = model.init(KEY, jnp.zeros((1, 8, 8, 3)), train=False)["params"]["layer1_rest"]["conv1"]["kernel"]
    assert kernels.shape == (3, 3, 3, 4, 4)
    assert len({float(kernel[0, 0, 0, 0]) for kernel in kernels}) == 3
    # He et al.: the fan in of one block, not of all.
    assert abs(float(kernels.std()) - (2 / 36) ** 0.5) < 0.03


@pytest.mark.parametrize("name", slow_except(["resnet1202_cifar"], ["resnet1202_cifar", "resnet1001_v2_cifar"]))
def test_the_program_hardly_grows_with_the_depth(name: str) -> None:
    def size(blocks: int) -> int:
        model = jaxnets.create_model(name, num_classes=10, stage_sizes=(blocks,) * 3)
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(partial(model.init, train=False), KEY, images)

        def loss(params: Any, variables: Any, images: jax.Array) -> Any:
            given = {**variables, "params": params}
            return model.apply(given, images, train=True, mutable=["batch_stats"])[0].sum()

        lowered = (
            jax.jit(jax.grad(loss)).trace(variables["params"], variables, images).lower(lowering_platforms=("cuda",))
        )
        return lowered.as_text().count("stablehlo.convolution")

    assert size(40) == size(4)


@pytest.mark.slow
def test_stochastic_depth_rises_with_the_depth_as_well() -> None:
    # Of a block whose residual is always 1, an image's outputs count the residuals that it kept.
    model = jaxnets.create_model(
        "resnet1001_v2_cifar", num_classes=2, stage_sizes=(5,), num_filters=2, stochastic_depth_rate=0.9
    )
    images = jnp.ones((400, 2, 2, 3))
    variables = jax.tree.map(jnp.zeros_like, model.init(KEY, images[:1], train=False))
    rest = variables["params"]["layer1_rest"]
    rest["bn3"]["bias"] = jnp.ones_like(rest["bn3"]["bias"])
    # The i-th of four repeated blocks adds 10^i, so that each can be read from the sum.
    rest["conv3"]["kernel"] = jnp.zeros_like(rest["conv3"]["kernel"]).at[:, 0, 0, 0, 0].set(10.0 ** jnp.arange(4))
    _, sown = model.apply(variables, images, train=True, rngs={"dropout": KEY}, mutable=["features", "batch_stats"])
    sums = np.asarray(sown["features"]["outputs"]["layer1.rest"])[:, 0, 0, 0]
    rates = 0.9 * np.arange(2, 6) / 5
    remaining, dropped = sums.astype(np.float64), []
    for i in reversed(range(4)):
        step = 10.0**i / (1 - rates[i])
        kept = remaining > step * 0.5
        remaining -= kept * step
        dropped.append(1 - kept.mean())
    assert np.abs(remaining).max() < 1e-2
    np.testing.assert_allclose(dropped[::-1], rates, atol=0.08)


def test_repeated_blocks_are_one_stage() -> None:
    model = jaxnets.create_model("resnet1202_cifar", num_classes=10)
    assert list(model.stages)[:4] == ["conv1", "layer1.0", "layer1.rest", "layer2.0"]
    with pytest.raises(InputError, match=r"no stage 'layer1\.7'"):
        jaxnets.features(model, {}, jnp.zeros((1, 32, 32, 3)), ["layer1.7"])
