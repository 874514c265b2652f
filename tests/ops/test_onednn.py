"""The convolution by oneDNN, in float32 alone, against the plain one; and that it is used where it is there."""

import platform
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

import jaxnets
from jaxnets.errors import InputError
from jaxnets.models.initialization import initial_variables
from jaxnets.ops import conv2d, dense, onednn, plain_conv2d

pytestmark = pytest.mark.usefixtures("native")
TARGET = "__onednn$convolution"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    groups=st.sampled_from([1, 1, 2, 4, 16]),
    multiples=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_equals_the_plain_form_with_its_gradients(
    size: tuple[int, int],
    window: tuple[int, int],
    stride: int,
    padding: int,
    groups: int,
    multiples: tuple[int, int],
) -> None:
    options = {"stride": stride, "padding": padding, "groups": groups}
    random = np.random.RandomState(sum(size))
    inputs = random.standard_normal((2, *size, groups * multiples[0])).astype(np.float32)
    kernel = random.standard_normal((*window, multiples[0], groups * multiples[1])).astype(np.float32)
    if any(pixels + 2 * padding < side for pixels, side in zip(size, window, strict=True)):
        with pytest.raises(InputError, match="does not fit"):
            conv2d(inputs, kernel, **options)
        return

    def gradients(conv, *arguments):  # type: ignore[no-untyped-def]
        outputs, pull = jax.vjp(lambda x, k: conv(x, k, **options), *arguments)
        return outputs, *pull(jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape).astype(outputs.dtype))

    actual = jax.jit(lambda x, k: gradients(conv2d, x, k))(inputs, kernel)
    with jax.enable_x64(True):
        expected = gradients(plain_conv2d, inputs.astype(np.float64), kernel.astype(np.float64))
    for ours, exact in zip(actual, expected, strict=True):
        assert ours.shape == exact.shape
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-6 * max(1.0, float(np.abs(exact).max())))


@pytest.mark.parametrize("rows", [3, 300])
def test_a_dense_layer_is_a_matrix_product(rows: int) -> None:
    random = np.random.RandomState(0)
    inputs, kernel = (random.standard_normal(shape).astype(np.float32) for shape in ((rows, 40), (40, 24)))
    outputs, pull = jax.vjp(dense, inputs, kernel)
    gradient = random.standard_normal(outputs.shape).astype(np.float32)
    np.testing.assert_allclose(outputs, inputs @ kernel, atol=1e-4)
    for actual, expected in zip(pull(gradient), (gradient @ kernel.T, inputs.T @ gradient), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-4)


def program(dtype: jax.typing.DTypeLike, *platforms: str) -> str:
    inputs, kernel = jnp.zeros((1, 8, 8, 16), dtype), jnp.zeros((3, 3, 16, 16), dtype)
    return (
        jax.jit(lambda x, k: conv2d(x, k, padding=1))
        .trace(inputs, kernel)
        .lower(lowering_platforms=platforms)
        .as_text()
    )


def test_is_used_where_it_is_there() -> None:
    linux = platform.system() == "Linux" and platform.machine() == "x86_64"
    assert onednn.available(jnp.float32) == linux or jaxlib.__version__ > "0.12"
    assert (TARGET in program(jnp.float32, "cpu")) == onednn.available(jnp.float32)
    assert TARGET not in program(jnp.float32, "cuda")
    assert TARGET not in program(jnp.bfloat16, "cpu")


def test_what_is_exported_does_without() -> None:
    function = jax.jit(lambda x, k: conv2d(x, k, padding=1))
    exported = export.export(function, platforms=("cpu",))(jnp.zeros((1, 8, 8, 16)), jnp.zeros((3, 3, 16, 16)))
    assert TARGET not in exported.mlir_module()


@pytest.mark.parametrize(
    ("release", "system", "switch", "expected"),
    [
        ("0.10.2", "Linux", "1", True),
        ("0.9.2", "Linux", "1", False),
        ("0.13.0", "Linux", "1", False),
        ("0.10.2", "Darwin", "1", False),
        ("0.10.2", "Linux", "0", False),
    ],
)
def test_only_releases_that_were_tried_are_trusted(
    release: str, system: str, switch: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxlib, "__version__", release)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv(onednn.SWITCH, switch)
    onednn._in_this_jaxlib.cache_clear()
    assert onednn.available(jnp.float32) == expected
    assert bool(onednn.compiler_options("cpu")) == expected


def test_a_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = jaxnets.create_model(
        "resnext29_8x64d_cifar", num_classes=3, stage_sizes=(1, 1), groups=4, width_per_group=32
    )
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = initial_variables(model, jax.random.key(0), 16)

    def gradients(model: Any, variables: Any, images: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            given = {**variables, "params": params}
            return jnp.sin(model.apply(given, images, train=True, mutable=["batch_stats"])[0]).sum()

        return jax.grad(loss)(variables["params"])

    with jax.enable_x64(True):
        exact: Any = model.clone(dtype=jnp.float64)
        doubles = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (variables, images))
        expected = jax.tree.leaves(jax.jit(lambda *arguments: gradients(exact, *arguments))(*doubles))

    def error() -> float:
        found = jax.tree.leaves(jax.jit(lambda *arguments: gradients(model, *arguments))(variables, images))
        squares = sum(
            float(np.square(np.float64(one) - other).sum()) for one, other in zip(found, expected, strict=True)
        )
        return (squares / sum(float(np.square(leaf).sum()) for leaf in expected)) ** 0.5

    by_onednn = error()
    monkeypatch.setattr(onednn, "available", lambda dtype: False)
    # Normalising a few images magnifies all rounding; XLA's own is magnified as well.
    assert by_onednn < max(3 * error(), 1e-6) < 3e-3
