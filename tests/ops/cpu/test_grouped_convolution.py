"""Convolutions in groups of 4 channels against each group by itself, in float64; and where they are used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.ops.cpu import grouped_convolution
from jaxnets.ops.cpu.convolutions import Convolution, Direction
from tests.ops.cpu.test_engine import pytestmark as pytestmark
from tests.ops.cpu.test_kernel_layout import by_group
from tests.ops.cpu.test_winograd import computed, normals, written_out, written_out_by_inputs


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 4),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    groups=st.sampled_from([2, 6, 32]),
    stride=st.integers(1, 3),
)
def test_equals_each_group_by_itself(count: int, size: tuple[int, int], groups: int, stride: int) -> None:
    images, kernel = normals(sum(size), (count, *size, 4 * groups), (3, 3, 4, 4 * groups))
    expected = by_group(written_out, groups, images, kernel)[:, ::stride, ::stride]
    call = grouped_convolution.convolution(images.shape, kernel.shape, expected.shape, stride)
    np.testing.assert_allclose(computed(call, expected.shape, images, kernel), expected, atol=5e-5)
    call = grouped_convolution.input_gradient(images.shape, kernel.shape)
    expected = by_group(written_out_by_inputs, groups, images, kernel)
    np.testing.assert_allclose(computed(call, images.shape, images, kernel), expected, atol=5e-5)


@pytest.mark.parametrize(("direction", "stride"), [(Direction.FORWARD, 2), (Direction.INPUT_GRADIENT, 1)])
def test_a_convolution_is_done_so(direction: Direction, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_convolution, "computes_by_eight", lambda: True)
    done = []
    for name in ("convolution", "input_gradient"):
        original = getattr(grouped_convolution, name)
        monkeypatch.setattr(
            grouped_convolution, name, lambda *shapes, made=original: done.append(shapes) or made(*shapes)
        )
    side = 14 // stride
    Convolution(direction, (1, 14, 14, 16), (3, 3, 4, 16), (1, side, side, 16), stride, 1, 4).call()
    assert len(done) == 1


@pytest.mark.parametrize(
    ("kernel", "outputs", "padding", "groups"),
    [
        ((3, 3, 8, 256), (8, 28, 28, 256), 1, 32),
        ((3, 3, 4, 256), (8, 28, 28, 256), 1, 32),
        ((3, 3, 4, 12), (8, 28, 28, 12), 1, 3),
        ((3, 3, 4, 128), (8, 3, 3, 128), 1, 32),
        ((3, 3, 4, 128), (8, 54, 54, 128), 0, 32),
        ((1, 1, 4, 128), (8, 58, 58, 128), 1, 32),
    ],
)
def test_others_are_not(
    kernel: tuple[int, ...], outputs: tuple[int, ...], padding: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped_convolution, "computes_by_eight", lambda: True)
    assert not grouped_convolution.suits(kernel, outputs, padding, groups)
    fitting = (3, 3, 4, 128), (8, 56, 56, 128), 1, 32
    assert grouped_convolution.suits(*fitting)
    monkeypatch.setattr(grouped_convolution, "computes_by_eight", lambda: False)
    assert not grouped_convolution.suits(*fitting)
