"""Max-pooling by code of our own against a loop over windows, exactly; and where it is used."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.ops.cpu import own_pooling
from jaxnets.ops.cpu.library import array_at, scratch_memory
from jaxnets.ops.cpu.pooling import MaxPool, MaxPoolGradient
from tests.ops.cpu.test_engine import pytestmark as pytestmark


def pooled(images: np.ndarray, outputs: tuple[int, ...], window: int, stride: int, low: tuple[int, int]) -> tuple:  # type: ignore[type-arg]
    """Largest values and taps, window by window: the first of equal ones, and the last NaN."""
    best, taps = np.full(outputs, -np.inf, np.float32), np.zeros(outputs, np.uint8)
    for n, i, j, c in np.ndindex(outputs):
        for tap, (row, column) in enumerate(itertools.product(range(window), repeat=2)):
            y, x = i * stride + row - low[0], j * stride + column - low[1]
            if 0 <= y < images.shape[1] and 0 <= x < images.shape[2]:
                value = images[n, y, x, c]
                if value > best[n, i, j, c] or np.isnan(value):
                    best[n, i, j, c], taps[n, i, j, c] = value, tap
    return best, taps


def by_images(
    gradient: np.ndarray, taps: np.ndarray, images: tuple[int, ...], window: int, stride: int, low: tuple[int, int]
) -> np.ndarray:
    result = np.zeros(images)
    for n, i, j, c in np.ndindex(gradient.shape):
        row, column = divmod(int(taps[n, i, j, c]), window)
        y, x = i * stride + row - low[0], j * stride + column - low[1]
        if 0 <= y < images[1] and 0 <= x < images[2]:
            result[n, y, x, c] += gradient[n, i, j, c]
    return result


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 2),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    window=st.integers(1, 3),
    stride=st.integers(1, 4),
    low=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    high=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    channels=st.sampled_from([8, 16]),
    odd=st.sampled_from([np.nan, np.inf, -np.inf, np.finfo(np.float32).min]),
)
def test_equals_the_loop(
    count: int,
    size: tuple[int, int],
    window: int,
    stride: int,
    low: tuple[int, int],
    high: tuple[int, int],
    channels: int,
    odd: float,
) -> None:
    sides = [(pixels + sum(pad) - window) // stride + 1 for pixels, *pad in zip(size, low, high, strict=True)]
    if min(sides) < 1:
        return
    random = np.random.RandomState(sum(size))
    images = -1.0 - random.randint(0, 3, (count, *size, channels)).astype(np.float32)  # with ties, and below zero
    images[random.random_sample(images.shape) < 0.2] = odd
    outputs = (count, *sides, channels)
    best, taps = np.full(outputs, np.nan, np.float32), np.full(outputs, 77, np.uint8)
    alone = best.copy()
    shapes = images.shape, outputs, window, stride, low
    own_pooling.max_pool(*shapes, winners=True)([array.ctypes.data for array in (images, best, taps)], 0)
    own_pooling.max_pool(*shapes, winners=False)([array.ctypes.data for array in (images, alone)], 0)
    expected, expected_taps = pooled(images, outputs, window, stride, low)
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(alone, expected)
    np.testing.assert_array_equal(taps, expected_taps)

    gradient = random.randint(-9, 9, outputs).astype(np.float32)
    result = np.full(images.shape, np.nan, np.float32)
    call = own_pooling.max_pool_gradient(*shapes)
    call([array.ctypes.data for array in (gradient, taps, result)], 0)
    np.testing.assert_array_equal(result, by_images(gradient, taps, images.shape, window, stride, low))


@pytest.mark.parametrize(("channels", "window", "expected"), [(64, 3, True), (60, 3, False), (64, 4, False)])
def test_where_it_is_used(channels: int, window: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_pooling, "computes_by_eight", lambda: True)
    assert own_pooling.suits(channels, window) == expected
    monkeypatch.setattr(own_pooling, "computes_by_eight", lambda: False)
    assert not own_pooling.suits(channels, window)


@pytest.mark.parametrize("own", [False, True])
def test_both_ways_of_pooling_agree(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_pooling, "computes_by_eight", lambda: own)
    images = np.random.RandomState(0).randint(-9, 0, (2, 9, 7, 16)).astype(np.float32)
    images[1, 2, 3, 4] = np.nan
    outputs, geometry = (2, 5, 4, 16), (3, 2, (1, 1), (1, 1))
    best, taps = np.zeros(outputs, np.float32), np.zeros(outputs, np.uint8)
    done = []
    for name in ("max_pool", "max_pool_gradient"):
        original = getattr(own_pooling, name)
        monkeypatch.setattr(
            own_pooling,
            name,
            lambda *shapes, made=original, **options: done.append(shapes) or made(*shapes, **options),
        )
    _run(MaxPool(images.shape, outputs, *geometry, True), images, best, taps)
    expected, expected_taps = pooled(images, outputs, 3, 2, (1, 1))
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(taps, expected_taps)
    result = np.zeros_like(images)
    _run(MaxPoolGradient(images.shape, outputs, *geometry, True), expected, taps, result)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(by_images(expected, taps, images.shape, 3, 2, (1, 1))))
    assert len(done) == 2 * own


def _run(work: MaxPool, *arrays: np.ndarray) -> None:
    call = work.call()
    kept, scratch = scratch_memory(call.scratch_size)
    array_at(scratch, [call.scratch_size // 4])[:] = np.nan
    call([array.ctypes.data for array in arrays], scratch)
    del kept
