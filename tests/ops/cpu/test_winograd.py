"""Winograd's convolution against the sum that it replaces, in float64; and where it is used."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.ops import conv2d
from jaxnets.ops.cpu import availability, convolutions, winograd
from jaxnets.ops.cpu.convolutions import BiasedConvolution, Convolution, Direction, KernelPacking
from jaxnets.ops.cpu.library import Call, array_at, scratch_memory
from jaxnets.ops.cpu.winograd_tiles import F2, F4, Tiles
from tests.ops.cpu.test_engine import pytestmark as pytestmark


def written_out(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The convolution 3x3 of padding 1 as its definition reads."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


def written_out_by_inputs(gradient: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return written_out(gradient, kernel[::-1, ::-1].swapaxes(2, 3))


def written_out_by_weights(images: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    return np.array([[np.einsum("nhwc,nhwf->cf", view, gradient) for view in row] for row in views])


def computed(call: Call, shape: tuple[int, ...], *operands: np.ndarray) -> np.ndarray:
    """What a call makes of operands, on memory that holds NaN before."""
    result = np.full(shape, np.nan, np.float32)
    kept, scratch = scratch_memory(call.scratch_size)
    array_at(scratch, [call.scratch_size // 4])[:] = np.nan
    call([*(array.ctypes.data for array in operands), result.ctypes.data], scratch)
    del kept
    return result


def normals(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    stream = np.random.RandomState(seed)
    return [stream.standard_normal(shape).astype(np.float32) for shape in shapes]


def assert_close(
    actual: np.ndarray, of: Callable[..., np.ndarray], *operands: np.ndarray, roundings: float = 2.0
) -> None:
    """Errors are at most some roundings of the largest sum of the operands' sizes."""
    operands = tuple(operand.astype(np.float64) for operand in operands)
    largest = of(*(abs(operand) for operand in operands)).max()
    assert abs(actual - of(*operands)).max() < roundings * np.finfo(np.float32).eps * largest


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 4),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    multiples=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    part=st.sampled_from([2**12, 2**16, 2**24]),
    tiles=st.sampled_from([F2, F4]),
)
def test_equals_the_sum_written_out(
    count: int, size: tuple[int, int], multiples: tuple[int, int], part: int, tiles: Tiles
) -> None:
    channels, features = (8 * multiple for multiple in multiples)
    images, kernel, gradient = normals(
        sum(size), (count, *size, channels), (3, 3, channels, features), (count, *size, features)
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(winograd, "_PART", part)  # so that there are one, several, or as many as rows of tiles
        patched.setattr(winograd, "tiles_of_inference", lambda _: tiles)
        shapes = images.shape, kernel.shape
        inference = winograd.biased_convolution(*shapes, adds=False, relu=False, packed=False)
        forward, by_inputs, by_weights = (
            getattr(winograd, name)(*shapes) for name in ("convolution", "input_gradient", "weight_gradient")
        )
    assert_close(computed(forward, gradient.shape, images, kernel), written_out, images, kernel)
    biased = computed(inference, gradient.shape, images, kernel, np.zeros(features, np.float32))
    assert_close(biased, written_out, images, kernel, roundings=2 if tiles is F2 else 5)
    assert_close(computed(by_inputs, images.shape, gradient, kernel), written_out_by_inputs, gradient, kernel)
    assert_close(computed(by_weights, kernel.shape, images, gradient), written_out_by_weights, images, gradient)


@pytest.mark.parametrize("tiles", [F2, F4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_outputs_are_finished(
    tiles: Tiles, packed: bool, adds: bool, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "suits", lambda *_: True)
    monkeypatch.setattr(winograd, "tiles_of_inference", lambda _: tiles)
    images, kernel, bias, added = normals(3, (2, 7, 9, 16), (3, 3, 16, 24), (24,), (2, 7, 9, 24))
    work = Direction.FORWARD, images.shape, kernel.shape, added.shape, 1, 1, 1, adds, relu, packed
    given = kernel
    if packed:
        packing = KernelPacking(*work)
        assert packing.packed_size() == tiles.planes * 16 * 24 * 4
        given = computed(packing.call(), (tiles.planes, 16, 24), kernel)
    operands = (images, given, bias, *([added] if adds else []))
    actual = computed(BiasedConvolution(*work).call(), added.shape, *operands)
    expected = written_out(images.astype(np.float64), kernel.astype(np.float64)) + bias + adds * added
    np.testing.assert_allclose(
        actual, np.maximum(expected, 0) if relu else expected, atol=1e-4 if tiles is F2 else 4e-4
    )
    bias[3] = np.nan
    finished = computed(BiasedConvolution(*work).call(), added.shape, *operands)[..., 3]
    assert np.isnan(finished).all()


@pytest.mark.parametrize(
    "images", [(1, 14, 14, 256), (1, 16, 16, 256), (2, 16, 16, 256), (8, 28, 28, 128), (64, 56, 56, 64)]
)
def test_inference_multiplies_least(images: tuple[int, ...]) -> None:
    count, height, width, _ = images

    def numbers(side: int) -> int:
        """Numbers that the products read, per channel: tiles, and the kernel, which takes as long as 30 tiles."""
        return (side + 2) ** 2 * (count * -(-height // side) * -(-width // side) + 30)

    assert winograd.tiles_of_inference(images).side == min((2, 4), key=numbers)


def test_memory_is_that_of_a_part() -> None:
    many = winograd.convolution((64, 56, 56, 64), (3, 3, 64, 64))
    assert many.scratch_size < 2.1 * 2**22


def test_parts_are_as_large_as_the_kernel() -> None:
    tiles = 8 * 14 * 14
    _, counts = winograd._parts(F2, (8, 28, 28, 512), 512, 512)
    assert sum(counts) == tiles
    assert len(counts) == -(-tiles // 512)  # a plane of the kernel has 512 x 512 numbers, one of the images 512 a tile


@pytest.mark.parametrize("avx2", [False, True])
@pytest.mark.parametrize("direction", Direction)
def test_convolutions_that_it_suits_are_done_so(
    direction: Direction, avx2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "computes_by_eight", lambda: avx2)
    done = []
    original = convolutions.WINOGRAD[direction]
    monkeypatch.setitem(convolutions.WINOGRAD, direction, lambda *shapes: done.append(shapes) or original(*shapes))
    images, kernel = (2, 24, 24, 64), (3, 3, 64, 128)
    Convolution(direction, images, kernel, (2, 24, 24, 128), 1, 1, 1).call()
    assert done == ([(images, kernel)] if avx2 else [])


@pytest.mark.parametrize(
    ("images", "kernel", "stride", "padding", "groups"),
    [
        ((8, 28, 28, 128), (3, 3, 128, 128), 2, 1, 1),
        ((8, 28, 28, 128), (3, 3, 128, 128), 1, 0, 1),
        ((8, 28, 28, 128), (5, 5, 128, 128), 1, 1, 1),
        ((8, 28, 28, 128), (1, 1, 128, 128), 1, 1, 1),
        ((8, 28, 28, 128), (3, 3, 4, 128), 1, 1, 32),
        ((8, 28, 28, 124), (3, 3, 124, 128), 1, 1, 1),
        ((8, 28, 28, 128), (3, 3, 128, 124), 1, 1, 1),
        ((1, 7, 7, 128), (3, 3, 128, 128), 1, 1, 1),
        ((1, 7, 7, 512), (3, 3, 512, 512), 1, 1, 1),
        ((32, 1, 1, 512), (3, 3, 512, 512), 1, 1, 1),
        ((8, 56, 56, 16), (3, 3, 16, 128), 1, 1, 1),
    ],
)
def test_others_are_not(
    images: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int,
    padding: int,
    groups: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(winograd, "computes_by_eight", lambda: True)
    assert not winograd.suits(images, kernel, stride, padding, groups)
    assert winograd.suits((8, 28, 28, 128), (3, 3, 128, 128), 1, 1, 1)
    assert winograd.suits((16, 2, 2, 512), (3, 3, 512, 512), 1, 1, 1)


def test_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "computes_by_eight", lambda: True)
    monkeypatch.setenv(availability.SWITCH, "winograd")
    availability.forget()
    assert not winograd.suits((8, 28, 28, 128), (3, 3, 128, 128), 1, 1, 1)


def test_a_program_computes_so_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "computes_by_eight", lambda: True)
    images, kernel, gradient = normals(0, (2, 23, 25, 64), (3, 3, 64, 96), (2, 23, 25, 96))
    outputs, pull = jax.vjp(lambda x, k: conv2d(x, k, padding=1), images, kernel)
    by_inputs, by_weights = pull(gradient)
    assert_close(outputs, written_out, images, kernel)
    assert_close(by_inputs, written_out_by_inputs, gradient, kernel)
    assert_close(by_weights, written_out_by_weights, images, gradient)
