"""The gradient by a kernel as sums over pixels, against those sums written out, in float64; and where it is used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.ops.cpu import pixel_products
from jaxnets.ops.cpu.convolutions import Convolution, Direction
from tests.ops.cpu.test_engine import pytestmark as pytestmark
from tests.ops.cpu.test_winograd import computed, normals


def written_out(
    images: np.ndarray, gradient: np.ndarray, window: tuple[int, int], stride: int, padding: int
) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    _, height, width, _ = gradient.shape
    rows, columns = (1 + (size - 1) * stride for size in (height, width))
    taps = [
        np.einsum("nhwc,nhwf->cf", padded[:, i : i + rows : stride, j : j + columns : stride], gradient)
        for i, j in np.ndindex(window)
    ]
    return np.reshape(taps, (*window, images.shape[3], gradient.shape[3]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 5),
    size=st.tuples(st.integers(3, 17), st.integers(3, 17)),
    window=st.sampled_from([(1, 1), (3, 3), (2, 3)]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    channels=st.sampled_from([8, 16, 24, 64, 136, 280]),
    features=st.sampled_from([8, 16, 24, 40, 136]),
)
def test_equals_the_sums_written_out(
    count: int, size: tuple[int, int], window: tuple[int, int], stride: int, padding: int, channels: int, features: int
) -> None:
    sides = [1 + (pixels + 2 * padding - side) // stride for pixels, side in zip(size, window, strict=True)]
    images, gradient = normals(sum(size), (count, *size, channels), (count, *sides, features))
    kernel = (*window, channels, features)
    call = pixel_products.weight_gradient(images.shape, kernel, gradient.shape, stride, padding)
    actual = computed(call, kernel, images, gradient)
    doubles = images.astype(np.float64), gradient.astype(np.float64)
    expected = written_out(*doubles, window, stride, padding)
    sizes = written_out(*(abs(array) for array in doubles), window, stride, padding)
    assert (abs(actual - expected) <= 4 * np.finfo(np.float32).eps * sizes).all()


@pytest.mark.parametrize("by_channels", [False, True])
def test_many_pixels_are_summed_in_blocks(by_channels: bool) -> None:
    images, gradient = normals(0, (3, 17, 19, 64), (3, 17, 19, 64 - 8 * by_channels))
    kernel = (1, 1, 64, gradient.shape[3])
    actual = computed(
        pixel_products.weight_gradient(images.shape, kernel, gradient.shape, 1, 0), kernel, images, gradient
    )
    expected = written_out(images.astype(np.float64), gradient.astype(np.float64), (1, 1), 1, 0)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "outputs", "groups", "expected"),
    [
        ((1, 1, 256, 1024), (8, 14, 14, 1024), 1, True),
        ((3, 3, 128, 128), (8, 28, 28, 128), 1, True),
        ((1, 1, 256, 1024), (1, 14, 14, 1024), 1, False),
        ((1, 1, 256, 64), (8, 56, 56, 64), 1, False),
        ((3, 3, 32, 128), (8, 28, 28, 128), 1, False),
        ((3, 3, 128, 128), (8, 28, 28, 128), 2, False),
        ((7, 7, 128, 128), (8, 28, 28, 128), 1, False),
        ((1, 1, 254, 1024), (8, 14, 14, 1024), 1, False),
        ((1, 1, 256, 1020), (8, 14, 14, 1020), 1, False),
    ],
)
def test_where_it_is_used(
    kernel: tuple[int, ...],
    outputs: tuple[int, ...],
    groups: int,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pixel_products, "has_only_avx2", lambda: True)
    assert pixel_products.suits(kernel, outputs, groups) == expected
    monkeypatch.setattr(pixel_products, "has_only_avx2", lambda: False)
    assert not pixel_products.suits(kernel, outputs, groups)


def test_a_convolution_of_stride_2_is_done_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_products, "has_only_avx2", lambda: True)
    done = []
    original = pixel_products.weight_gradient
    monkeypatch.setattr(pixel_products, "weight_gradient", lambda *shapes: done.append(shapes) or original(*shapes))
    images, gradient = normals(0, (2, 16, 16, 64), (2, 8, 8, 72))
    work = Convolution(Direction.WEIGHT_GRADIENT, images.shape, (3, 3, 64, 72), gradient.shape, 2, 1, 1)
    actual = computed(work.call(), (3, 3, 64, 72), images, gradient)
    assert len(done) == 1
    expected = written_out(images.astype(np.float64), gradient.astype(np.float64), (3, 3), 2, 1)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
