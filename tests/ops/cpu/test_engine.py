"""What oneDNN computes, in float32 alone, against the plain forms; and that it is used where it is there."""

import ctypes
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

import jaxnets
from jaxnets.errors import InputError
from jaxnets.inference import fold, specialised
from jaxnets.models.initialization import initial_variables
from jaxnets.ops import batch_norm, conv2d, conv2d_bias, cpu, dense, max_pool, pack_kernels, plain_conv2d
from jaxnets.ops.cpu import availability, calls
from jaxnets.ops.cpu.convolutions import Convolution, Direction
from jaxnets.ops.cpu.joined_calls import call_text
from tests.tiers import slow_except


def _can_be_here() -> bool:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.usefixtures("native"),
    pytest.mark.skipif(not _can_be_here(), reason="oneDNN needs Linux on x86-64 with libgomp.so.1"),
]


@pytest.mark.fast
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
        plain = jax.jit(lambda x, k: gradients(plain_conv2d, x, k))
        expected = plain(inputs.astype(np.float64), kernel.astype(np.float64))
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


@pytest.mark.fast
def test_is_used_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.available()
    assert calls.TARGET in program(jnp.float32, "cpu")
    assert calls.TARGET not in program(jnp.float32, "cuda")
    assert calls.TARGET not in program(jnp.bfloat16, "cpu")
    monkeypatch.setenv(availability.SWITCH, "all")
    availability.forget()
    assert not cpu.available()
    assert calls.TARGET not in program(jnp.float32, "cpu")


def test_what_is_exported_does_without() -> None:
    function = jax.jit(lambda x, k: conv2d(x, k, padding=1))
    exported = export.export(function, platforms=("cpu",))(jnp.zeros((1, 8, 8, 16)), jnp.zeros((3, 3, 16, 16)))
    assert calls.TARGET not in exported.mlir_module()


def test_both_gradients_are_one_call() -> None:
    def gradients(inputs: jax.Array, kernel: jax.Array) -> Any:
        return jax.grad(lambda x, k: conv2d(x, k, padding=1).sum(), (0, 1))(inputs, kernel)

    text = jax.jit(gradients).lower(jnp.zeros((1, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))).as_text()
    assert text.count(f"@{calls.TARGET}(") == 1


@pytest.mark.fast
def test_several_threads_at_once() -> None:
    images = [jnp.full((4, 9, 9, 8), float(number)) for number in range(8)]
    kernel = jnp.full((3, 3, 8, 8), 1 / 72)
    centre = jax.jit(lambda x: conv2d(conv2d(x, kernel), kernel)[:, 2, 2, 0])
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(centre, images * 20)):
            np.testing.assert_allclose(found, number % 8, rtol=1e-5)


def test_a_failing_call_fails_the_program() -> None:
    assert cpu.available()
    call = jax.ffi.ffi_call(calls.TARGET, jax.ShapeDtypeStruct((2,), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"{calls.TARGET}: .*Unknown"):
        jax.jit(lambda: call(call=call_text([["Unknown", {}, [0]]])))()


def test_empty_operands_give_what_the_plain_form_gives() -> None:
    def found(dtype: Any) -> Any:
        images, kernel = jnp.zeros((0, 8, 8, 16), dtype), jnp.ones((3, 3, 16, 16), dtype)
        scale = jnp.ones(16, dtype)

        def function(images: jax.Array, kernel: jax.Array, scale: jax.Array) -> Any:
            outputs, moments = batch_norm(conv2d(images, kernel, padding=1), scale, scale, 1e-3, None, jax.nn.relu)
            pooled = max_pool(outputs, 3, stride=2)
            return conv2d_bias(pooled, kernel, scale, padding=1, activation=jax.nn.relu).sum(), (moments, pooled)

        return jax.jit(jax.value_and_grad(function, (0, 1, 2), has_aux=True))(images, kernel, scale)

    actual = found(jnp.float32)
    with jax.enable_x64(True):
        expected = found(jnp.float64)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert conv2d(jnp.ones((1, 4, 4, 8)), jnp.ones((1, 1, 8, 0))).shape == (1, 4, 4, 0)


def test_numpy_numbers_are_options_too() -> None:
    images, kernel = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 4, 4))
    np.testing.assert_array_equal(conv2d(images, kernel, stride=np.int64(2)), conv2d(images, kernel, stride=2))
    pooled = max_pool(images, np.int64(3), stride=np.int32(2))
    np.testing.assert_array_equal(pooled, max_pool(images, 3, stride=2))
    ones, epsilon = jnp.ones(4), 2**-10
    normalised = batch_norm(images, ones, ones, np.float32(epsilon))  # type: ignore[arg-type]
    np.testing.assert_array_equal(normalised[0], batch_norm(images, ones, ones, epsilon)[0])


@pytest.mark.parametrize("count", slow_except([40], [40, 200]))
def test_interrupts_are_raised_and_spoil_no_results(count: int) -> None:
    script = """
import signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from jaxnets.ops import conv2d, cpu

def interrupt(*_):
    raise KeyboardInterrupt

assert cpu.available()
signal.signal(signal.SIGALRM, interrupt)
images = jnp.asarray(np.random.RandomState(0).standard_normal((4, 16, 16, 64)), jnp.float32)
function = jax.jit(lambda images, kernel: conv2d(images, kernel, padding=1))
arguments = images, jnp.ones((3, 3, 64, 64))
expected = np.asarray(function(*arguments))
raised = 0
for delay in np.random.RandomState(0).uniform(0.005, 0.01, int(sys.argv[1])):
    wrong = []
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        end = time.perf_counter() + 20
        while time.perf_counter() < end:
            found = np.asarray(function(*arguments))
            wrong.append(not np.array_equal(found, expected))
    except KeyboardInterrupt:
        raised += 1
    assert not any(wrong)
print("raised", raised)
"""
    command = [sys.executable, "-c", script, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout.strip(), done.stderr) == (f"raised {count}", "")


def test_what_can_not_be_done_is_said_when_the_program_is_made() -> None:
    with pytest.raises(RuntimeError, match="convolution_forward_primitive_desc_create failed with status"):
        Convolution(Direction.FORWARD, (1, 4, 4, 8), (3, 3, 7, 8), (1, 4, 4, 8), 1, 1, 1).call()


@pytest.mark.slow
def test_programs_are_kept_for_the_next_start(tmp_path: Path) -> None:
    script = """
import jax, jax.numpy as jnp
from jaxnets.ops import conv2d
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
function = jax.jit(lambda x, k: conv2d(x, k, padding=1) + 1)
total = float(function(jnp.ones((1, 5, 5, 16)), jnp.ones((3, 3, 16, 16))).sum())
print(total, "/jax/compilation_cache/cache_hits" in hits)
"""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    printed = [
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    total = 16 * (16 * 169 + 25)  # 169 taps of 25 pixels meet a pixel
    assert [run.stdout.split() for run in printed] == [[f"{total:.1f}", "False"], [f"{total:.1f}", "True"]]


@pytest.mark.parametrize(
    "shape",
    slow_except(
        [[2, 5, 5, 24], [3, 4, 4, 5], [9, 16]],
        [[4, 7, 5, 32], [2, 5, 5, 24], [3, 4, 4, 5], [2, 6, 5, 160], [9, 16], [1, 1, 1, 3]],
    ),
)
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm(shape: list[int], relu: bool) -> None:
    random = np.random.RandomState(0)
    inputs, gradient = random.normal(3, 2, shape), random.standard_normal(shape)
    vectors = [random.standard_normal(shape[-1]) for _ in range(2)]

    def found(dtype: Any) -> Any:
        arguments = [jnp.asarray(array, dtype) for array in (inputs, *vectors)]
        (outputs, moments), pull = jax.vjp(
            lambda *a: batch_norm(*a, 1e-3, None, jax.nn.relu if relu else None), *arguments
        )
        still = jax.tree.map(jnp.zeros_like, moments)
        return outputs, moments, pull((jnp.asarray(gradient, dtype), still))

    actual = jax.jit(lambda: found(jnp.float32))()
    with jax.enable_x64(True):
        expected = found(jnp.float64)
    assert calls.TARGET in jax.jit(lambda: found(jnp.float32)).lower().as_text()
    for ours, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-6 * max(1.0, float(np.abs(exact).max())))


@pytest.mark.parametrize("filled", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("relu", slow_except([True], [False, True]))
def test_batch_norm_of_what_is_not_finite(filled: float, relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel's moments tell of it, and so do its outputs, unless it was finite and only the variance isn't."""
    inputs = np.random.RandomState(0).standard_normal((4, 4, 4, 16)).astype(np.float32)
    inputs[1, 2, 3, 5], inputs[:, :, :, 9] = filled, filled
    spoilt = np.isin(np.arange(16), (5, 9))

    def found() -> Any:
        return batch_norm(
            jnp.asarray(inputs), jnp.ones(16), jnp.linspace(-1, 1, 16), 1e-3, None, jax.nn.relu if relu else None
        )

    assert calls.TARGET in jax.jit(found).lower().as_text()
    actual = found()
    monkeypatch.setattr(cpu, "available", lambda: False)
    jax.clear_caches()
    expected = found()
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours[..., ~spoilt], theirs[..., ~spoilt], rtol=1e-5, atol=1e-5)
    for outputs, (mean, var) in (actual, expected):
        np.testing.assert_array_equal(~np.isfinite(mean) | ~np.isfinite(var), spoilt)
        if not np.isfinite(filled):
            assert np.isnan(outputs[..., spoilt]).all()


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 1)])
@pytest.mark.parametrize("ceil_mode", slow_except([True], [False, True]))
@pytest.mark.parametrize("channels", slow_except([16], [16, 5]))
def test_max_pools_gradient(window: int, stride: int, padding: int, ceil_mode: bool, channels: int) -> None:
    random = np.random.RandomState(0)
    inputs = -1.0 - random.randint(0, 3, (2, 9, 6, channels))  # with ties, and below what surrounds them

    def found(dtype: Any) -> jax.Array:
        pool = partial(max_pool, window=window, stride=stride, padding=padding, ceil_mode=ceil_mode)
        outputs, pull = jax.vjp(pool, jnp.asarray(inputs, dtype))
        (by_inputs,) = pull(jnp.cos(jnp.arange(outputs.size, dtype=dtype)).reshape(outputs.shape))
        return by_inputs

    with jax.enable_x64(True):
        expected = found(jnp.float64)
    np.testing.assert_allclose(jax.jit(lambda: found(jnp.float32))(), expected, rtol=0, atol=1e-6)
    assert calls.TARGET in jax.jit(lambda: found(jnp.float32)).lower().as_text()


def test_a_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = jaxnets.create_model("resnext29_8x64d_cifar", num_classes=3, stage_sizes=(1,), groups=4, width_per_group=32)
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

    by_engine = error()
    monkeypatch.setattr(cpu, "available", lambda: False)
    jax.clear_caches()
    # Normalising a few images magnifies all rounding; XLA's own is magnified as well.
    assert by_engine < max(3 * error(), 1e-6) < 3e-3


@pytest.mark.parametrize("filled", [np.nan, -np.inf, np.inf, 3e38])
@pytest.mark.parametrize(("window", "stride", "padding", "ceil_mode"), [(3, 2, 1, False), (2, 2, 0, True)])
@pytest.mark.parametrize("derive", slow_except([True], [False, True]))
def test_max_pool_of_what_is_not_finite(
    filled: float, window: int, stride: int, padding: int, ceil_mode: bool, derive: bool
) -> None:
    inputs = np.random.RandomState(0).randint(-3, 0, (2, 7, 6, 16)).astype(np.float32)
    inputs[0, 1:5, 1:5, 3], inputs[1, 2, 3, 5:] = filled, filled

    def found() -> Any:
        def pool(images: jax.Array) -> jax.Array:
            return max_pool(images, window, stride=stride, padding=padding, ceil_mode=ceil_mode)

        if not derive:
            return jax.jit(pool)(inputs)
        outputs, pull = jax.vjp(jax.jit(pool), jnp.asarray(inputs))
        return outputs, *pull(jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape))

    assert calls.TARGET in jax.jit(found).lower().as_text()
    actual = found()
    with jax.enable_x64(True):
        inputs = inputs.astype(np.float64)  # which oneDNN does not do
        expected = found()
    for ours, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [
        ((9, 7), (3, 3, 16, 24), {"padding": 1}),
        ((9, 7), (3, 3, 4, 32), {"stride": 2, "padding": 1, "groups": 4}),
        ((32, 32), (1, 1, 16, 8), {}),
        ((3, 3), (1, 1, 16, 40), {}),  # a matrix product
        ((2, 2), (3, 3, 16, 64), {"padding": 1}),  # patches
    ],
)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("relu", slow_except([True], [False, True]))
def test_a_convolution_with_what_follows_it(
    size: tuple[int, int], kernel: tuple[int, ...], options: dict[str, int], adds: bool, relu: bool
) -> None:
    random = np.random.RandomState(0)
    channels = kernel[2] * options.get("groups", 1)
    arrays = [random.standard_normal(shape) for shape in ((2, *size, channels), kernel, kernel[3:])]
    plain = plain_conv2d(*map(jnp.asarray, arrays[:2]), **options)
    if adds:
        arrays.append(random.standard_normal(plain.shape))
    given = [jnp.asarray(array, jnp.float32) for array in arrays]

    def function(*operands: jax.Array) -> jax.Array:
        return conv2d_bias(*operands, activation=jax.nn.relu if relu else None, **options)

    with jax.enable_x64(True):
        exact = sum(map(jnp.asarray, arrays[3:]), plain_conv2d(arrays[0], arrays[1], **options) + arrays[2])
        exact = np.maximum(exact, 0) if relu else np.asarray(exact)
    assert (exact == 0).any() == relu
    near = partial(np.testing.assert_allclose, desired=exact, rtol=0, atol=1e-6 * float(np.abs(exact).max()))
    near(jax.jit(function)(*given))
    assert calls.TARGET in jax.jit(function).lower(*given).as_text()
    batched = jax.vmap(function, (0, None, None, *[0] * adds))(
        *(array[None] if i in (0, 3) else array for i, array in enumerate(given))
    )
    near(batched[0])

    run, leaves = pack_kernels(lambda leaves, *rest: function(rest[0], *leaves, *rest[1:]), given[1:3], *given[::3])
    near(jax.jit(run)(leaves, *given[::3]))
    assert leaves[0].ndim == 1
    assert leaves[1] is given[2]


def test_a_folded_networks_kernels_are_laid_out_once() -> None:
    model = jaxnets.create_model("resnet50", num_classes=5, stage_sizes=(2, 1))
    weights = initial_variables(model, jax.random.key(0), 32)
    images = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
    expected = jax.jit(partial(model.apply, train=False))(weights, images)
    folded, params, _ = fold(model, weights)
    run = specialised(partial(folded.apply, train=False), params, images)
    np.testing.assert_allclose(run(images), expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
    kernels = [leaf for leaf in run.args[0] if leaf.ndim == 4]
    assert not kernels
    with pytest.raises(TypeError, match=r"compiled with float32\[2,32,32,3\]"):
        run(images[:1])


def test_what_is_specialised_is_a_copy() -> None:
    kernel, bias = np.ones((3, 3, 8, 8), np.float32), np.ones(8, np.float32)
    given = jnp.ones(8)
    images = jnp.ones((1, 6, 6, 8))
    run = specialised(
        lambda weights, images: conv2d_bias(images, *weights[:2]) + weights[2], (kernel, bias, given), images
    )
    expected = np.asarray(run(images))
    kernel[...], bias[...] = 5, 7
    given.delete()
    np.testing.assert_array_equal(run(images), expected)


@pytest.mark.parametrize(
    ("bias", "added", "message"),
    [((1,), None, r"the bias has shape \(1,\)"), ((8,), (1, 4, 4, 8), r"the added array has shape .*\(2, 4, 4, 8\)")],
)
def test_shapes_that_follow_a_convolution_must_fit(
    bias: tuple[int, ...], added: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        conv2d_bias(
            jnp.ones((2, 6, 6, 8)), jnp.ones((3, 3, 8, 8)), jnp.ones(bias), None if added is None else jnp.ones(added)
        )


@pytest.mark.parametrize("short", range(4))
def test_types_that_follow_a_convolution_are_promoted(short: int) -> None:
    random = np.random.RandomState(0)
    shapes = (2, 6, 6, 8), (3, 3, 8, 8), (8,), (2, 4, 4, 8)
    arrays = [
        jnp.asarray(random.standard_normal(shape), jnp.bfloat16 if i == short else jnp.float32)
        for i, shape in enumerate(shapes)
    ]
    wide = [array.astype(jnp.float32) for array in arrays]
    outputs = jax.jit(conv2d_bias)(*arrays)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, plain_conv2d(*wide[:2]) + wide[2] + wide[3], rtol=0, atol=1e-4)
    if short == 2:
        normalised = jax.jit(lambda x, bias: batch_norm(x, jnp.ones(8), bias, 1e-3)[0])
        np.testing.assert_allclose(normalised(arrays[0], arrays[2]), normalised(arrays[0], wide[2]), atol=1e-5)


@pytest.mark.parametrize("used", ["twice", "otherwise", "as they are"])
def test_a_kernel_with_other_uses_stays_as_it_is(used: str) -> None:
    random = np.random.RandomState(0)
    kernel, images = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((3, 3, 8, 8), (2, 6, 6, 8)))

    def function(kernel: jax.Array, images: jax.Array) -> Any:
        outputs = conv2d_bias(images, kernel, jnp.ones(8), padding=1)
        match used:
            case "twice":  # and for other sizes, for which it would be laid out in another way
                return conv2d_bias(outputs[:, :3, :3, :], kernel, jnp.ones(8))
            case "otherwise":
                return outputs + kernel.sum()
        return outputs, kernel

    run = specialised(function, kernel, images)
    for ours, theirs in zip(*map(jax.tree.leaves, (run(images), function(kernel, images))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_call_after_the_end_fails_and_does_not_wait() -> None:
    script = """
import jax, jax.numpy as jnp
from jaxnets.ops import conv2d, cpu
from jaxnets.ops.cpu import handler

assert cpu.available()
function = jax.jit(conv2d)
arguments = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 8, 8))
print(float(function(*arguments).sum()))
handler._close(next(one for one in handler._alive if isinstance(one, handler._Mailbox)))  # as at exit
try:
    function(*arguments).block_until_ready()
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == [f"{4 * 8 * 72:.1f}", "INTERNAL: jaxnets_cpu: the interpreter is ending"]
