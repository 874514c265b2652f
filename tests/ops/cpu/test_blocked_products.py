"""Matrix products by code of our own against float64; and where they are used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.ops.cpu import blocked_products
from jaxnets.ops.cpu.convolutions import Convolution, Direction
from tests.ops.cpu.test_engine import pytestmark as pytestmark
from tests.ops.cpu.test_winograd import assert_close, computed, normals


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([2, 4, 6, 8, 10, 64, 132, 134, 136, 266]),
    inner=st.sampled_from([4, 8, 252, 256, 260, 516, 1024]),
    columns=st.sampled_from([8, 16, 24, 64, 72, 136, 144, 200]),
)
def test_equals_the_product(rows: int, inner: int, columns: int) -> None:
    left, right = normals(rows + inner, (rows, inner), (inner, columns))
    result = computed(blocked_products.product(rows, inner, columns), (rows, columns), left, right)
    assert_close(result, np.matmul, left, right)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((256, 512, 1024), True),
        ((64, 2048, 1024), True),
        ((392, 832, 256), True),
        ((512, 512, 1024), False),
        ((49, 512, 1024), False),
        ((256, 512, 128), False),
        ((256, 128, 1024), False),
        ((256, 510, 1024), False),
        ((256, 512, 1020), False),
    ],
)
def test_where_they_are_used(sizes: tuple[int, int, int], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_products, "has_only_avx2", lambda: True)
    assert blocked_products.suits(*sizes) == expected
    monkeypatch.setattr(blocked_products, "has_only_avx2", lambda: False)
    assert not blocked_products.suits(*sizes)


def test_a_convolution_of_few_pixels_is_done_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxnets.ops.cpu.convolutions.has_avx512", lambda: False)
    monkeypatch.setattr(blocked_products, "has_only_avx2", lambda: True)
    done = []
    original = blocked_products.product
    monkeypatch.setattr(blocked_products, "product", lambda *sizes: done.append(sizes) or original(*sizes))
    images, kernel = normals(0, (2, 5, 7, 256), (1, 1, 256, 264))
    work = Convolution(Direction.FORWARD, images.shape, kernel.shape, (2, 5, 7, 264), 1, 0, 1)
    result = computed(work.call(), (2, 5, 7, 264), images, kernel)
    assert done == [(70, 256, 264)]
    assert_close(result, lambda images, kernel: images @ kernel[0, 0], images, kernel)
