"""Gradients by the kernels of grouped convolutions against each group by itself, in float64; and where they are used.

Nothing of the sums' own code is used for what is expected.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.ops.cpu import grouped_gradient
from jaxnets.ops.cpu.convolutions import Convolution, Direction
from tests.ops.cpu.test_engine import pytestmark as pytestmark
from tests.ops.cpu.test_kernel_layout import by_group
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


def expected_of(groups: int, stride: int, images: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return by_group(lambda *own: written_out(*own, (3, 3), stride, 1), groups, images, gradient)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 5),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    groups=st.sampled_from([(4, 4), (4, 12), (4, 32), (8, 2), (8, 3), (16, 2), (24, 3)]),
    stride=st.integers(1, 3),
)
def test_equals_each_group_by_itself(count: int, size: tuple[int, int], groups: tuple[int, int], stride: int) -> None:
    channels = groups[0] * groups[1]
    sides = [1 + (pixels - 1) // stride for pixels in size]
    images, gradient = normals(sum(size), (count, *size, channels), (count, *sides, channels))
    kernel = (3, 3, groups[0], channels)
    call = grouped_gradient.weight_gradient(images.shape, kernel, gradient.shape, stride)
    actual = computed(call, kernel, images, gradient)
    expected = expected_of(groups[1], stride, images, gradient)
    sizes = expected_of(groups[1], stride, abs(images), abs(gradient))
    assert (abs(actual - expected) <= 8 * np.finfo(np.float32).eps * sizes).all()


@pytest.mark.parametrize(
    ("kernel", "outputs", "padding", "groups", "expected"),
    [
        ((3, 3, 4, 128), (8, 56, 56, 128), 1, 32, True),
        ((3, 3, 32, 1024), (16, 2, 2, 1024), 1, 32, True),
        ((3, 3, 16, 512), (16, 4, 4, 512), 1, 32, False),
        ((3, 3, 4, 24), (8, 56, 56, 24), 1, 6, False),
        ((3, 3, 4, 256), (8, 56, 56, 256), 1, 32, False),
        ((3, 3, 12, 48), (16, 2, 2, 48), 1, 4, False),
        ((3, 3, 4, 128), (8, 54, 54, 128), 0, 32, False),
        ((1, 1, 4, 128), (8, 58, 58, 128), 1, 32, False),
        ((3, 3, 16, 16), (16, 2, 2, 16), 1, 1, False),
    ],
)
def test_where_they_are_used(
    kernel: tuple[int, ...],
    outputs: tuple[int, ...],
    padding: int,
    groups: int,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouped_gradient, "computes_by_eight", lambda: True)
    assert grouped_gradient.suits(kernel, outputs, padding, groups) == expected
    monkeypatch.setattr(grouped_gradient, "computes_by_eight", lambda: False)
    assert not grouped_gradient.suits(kernel, outputs, padding, groups)


def test_a_convolution_is_done_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_gradient, "computes_by_eight", lambda: True)
    done = []
    original = grouped_gradient.weight_gradient
    monkeypatch.setattr(grouped_gradient, "weight_gradient", lambda *shapes: done.append(shapes) or original(*shapes))
    images, gradient = normals(0, (2, 9, 9, 16), (2, 5, 5, 16))
    work = Convolution(Direction.WEIGHT_GRADIENT, images.shape, (3, 3, 4, 16), gradient.shape, 2, 1, 4)
    actual = computed(work.call(), (3, 3, 4, 16), images, gradient)
    assert len(done) == 1
    np.testing.assert_allclose(actual, expected_of(4, 2, images, gradient), atol=1e-4)
