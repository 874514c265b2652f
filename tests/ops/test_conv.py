"""The fast forms of the convolution against the plain one, and that against a loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.errors import InputError
from jaxnets.ops import conv2d, plain_conv2d
from tests.tiers import slow_except

pytestmark = pytest.mark.usefixtures("float64")


def arrays(height: int, width: int, channels: int, features: int, window: int, groups: int) -> tuple[np.ndarray, ...]:
    stream = np.random.RandomState(height * 31 + window)
    return (
        stream.standard_normal((2, height, width, channels)),
        stream.standard_normal((window, window, channels // groups, features)),
    )


def looped(inputs: np.ndarray, kernel: np.ndarray, stride: int, padding: int, groups: int) -> np.ndarray:
    """Convolution as its definition reads."""
    padded = np.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    window, _, group_inputs, features = kernel.shape
    rows, columns = ((size - window) // stride + 1 for size in padded.shape[1:3])
    outputs = np.zeros((len(inputs), rows, columns, features))
    for row, column, feature in itertools.product(range(rows), range(columns), range(features)):
        first = feature // (features // groups) * group_inputs
        seen = padded[
            :,
            row * stride : row * stride + window,
            column * stride : column * stride + window,
            first : first + group_inputs,
        ]
        outputs[:, row, column, feature] = np.einsum("nijc,ijc->n", seen, kernel[..., feature])
    return outputs


@pytest.mark.parametrize("size", slow_except([1, 4], [1, 2, 4, 9]))
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2), (7, 2, 3)]
)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_equals_its_definition(size: int, window: int, stride: int, padding: int, groups: int) -> None:
    inputs, kernel = arrays(size, size + 1, 6, 12, window, groups)
    actual = conv2d(inputs, kernel, stride=stride, padding=padding, groups=groups)
    np.testing.assert_allclose(actual, looped(inputs, kernel, stride, padding, groups), atol=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    window=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    groups=st.sampled_from([1, 1, 2, 4, 16]),
    multiples=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_equals_the_plain_form_with_its_gradients(
    size: tuple[int, int], window: int, stride: int, padding: int, groups: int, multiples: tuple[int, int]
) -> None:
    options = {"stride": stride, "padding": padding, "groups": groups}
    inputs, kernel = arrays(*size, groups * multiples[0], groups * multiples[1], window, groups)
    if min(size) + 2 * padding < window:
        with pytest.raises(InputError, match="does not fit"):
            conv2d(inputs, kernel, **options)
        return

    def gradients(conv, *arguments):  # type: ignore[no-untyped-def]
        outputs, pull = jax.vjp(lambda x, k: conv(x, k, **options), *arguments)
        return outputs, *pull(jnp.cos(jnp.arange(outputs.size).reshape(outputs.shape)))

    both = jax.jit(lambda *arguments: (gradients(conv2d, *arguments), gradients(plain_conv2d, *arguments)))
    for actual, expected in zip(*both(inputs, kernel), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "features", "groups"),
    slow_except([(64, 96, 2)], [(64, 128, 32), (64, 96, 2), (128, 64, 32), (40, 80, 40)]),
)
@pytest.mark.parametrize("dtype", slow_except(["float64"], ["float64", "float32", "bfloat16"]))
def test_merged_groups_equal_separate_ones(channels: int, features: int, groups: int, dtype: str) -> None:
    # Maps this large are convolved by several groups at a time.
    arguments = [jnp.asarray(array, dtype) for array in arrays(10, 11, channels, features, 3, groups)]
    exact = [jnp.asarray(array, jnp.float64) for array in arguments]
    weights = jnp.cos(jnp.arange(2 * 10 * 11 * features)).reshape(2, 10, 11, features)

    def gradients(conv, arguments):  # type: ignore[no-untyped-def]
        outputs, pull = jax.vjp(lambda x, k: conv(x, k, padding=1, groups=groups), *arguments)
        return outputs, *pull(weights.astype(outputs.dtype))

    rounding = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 3e-2}[dtype]
    both = jax.jit(lambda arguments, exact: (gradients(conv2d, arguments), gradients(plain_conv2d, exact)))
    for actual, expected in zip(*both(arguments, exact), strict=True):
        assert actual.dtype == dtype
        error = np.abs(np.asarray(actual, np.float64) - expected).max()
        assert error < rounding * np.abs(expected).max()


def test_the_backward_pass_keeps_only_the_arguments() -> None:
    for size, groups in ((3, 1), (7, 16), (12, 16)):
        inputs, kernel = arrays(size, size, 32, 32, 3, groups)
        saved = jax.tree.leaves(jax.vjp(lambda x, k, g=groups: conv2d(x, k, padding=1, groups=g), inputs, kernel)[1])
        assert sum(leaf.size for leaf in saved) <= inputs.size + kernel.size


@pytest.mark.fast
def test_differentiates_forward_and_twice() -> None:
    inputs, kernel = arrays(3, 3, 4, 4, 3, 2)

    def energy(conv, x):  # type: ignore[no-untyped-def]
        return jnp.sum(conv(x, kernel, padding=1, groups=2) ** 3)

    actual, expected = (jax.hessian(lambda x, c=conv: energy(c, x))(inputs) for conv in (conv2d, plain_conv2d))
    np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_refuses_groups_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"6 input channels.*4 groups"):
        conv2d(jnp.zeros((1, 4, 4, 6)), jnp.zeros((3, 3, 1, 8)), groups=4)


@pytest.mark.parametrize("groups", [2, 32])
def test_the_program_for_the_cpu_holds_no_grouped_convolution(groups: int) -> None:
    inputs, kernel = jnp.zeros((1, 16, 16, 64)), jnp.zeros((3, 3, 64 // groups, 64))
    step = jax.jit(jax.grad(lambda x, k: conv2d(x, k, padding=1, groups=groups).sum(), argnums=(0, 1)))
    on_cpu, on_gpu = (
        step.trace(inputs, kernel).lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")
    )
    assert f"feature_group_count = {groups}" not in on_cpu
    assert f"batch_group_count = {groups}" not in on_cpu
    assert f"feature_group_count = {groups}" in on_gpu
