"""Narrow groups that oneDNN computes as fewer, wider ones, against each group by itself, in float64."""

import numpy as np
import pytest

from jaxnets.ops.cpu import grouped_convolution, kernel_layout
from jaxnets.ops.cpu.convolutions import BiasedConvolution, Convolution, Direction, KernelPacking
from jaxnets.ops.cpu.kernel_layout import KernelLayout
from tests.ops.cpu.test_engine import pytestmark as pytestmark
from tests.ops.cpu.test_winograd import computed, normals, written_out, written_out_by_inputs, written_out_by_weights


@pytest.fixture(autouse=True)
def vectors_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_layout, "computes_by_eight", lambda: True)
    monkeypatch.setattr(grouped_convolution, "suits", lambda *_: False)


def by_group(of, groups, *operands):  # type: ignore[no-untyped-def]
    """What is done to each group's part of float64 arrays; kernels are split along their features alone."""
    parts = (np.split(array.astype(np.float64), groups, axis=-1) for array in operands)
    return np.concatenate([of(*own) for own in zip(*parts, strict=True)], axis=-1)


@pytest.mark.parametrize(("channels", "features", "groups"), [(4, 4, 8), (2, 6, 16), (4, 2, 2), (3, 3, 8), (1, 1, 16)])
def test_equals_each_group_by_itself(channels: int, features: int, groups: int) -> None:
    images, kernel, gradient = normals(
        groups, (2, 9, 7, channels * groups), (3, 3, channels, features * groups), (2, 9, 7, features * groups)
    )
    work = images.shape, kernel.shape, gradient.shape, 1, 1, groups
    for direction, of, operands, shape in (
        (Direction.FORWARD, written_out, (images, kernel), gradient.shape),
        (Direction.INPUT_GRADIENT, written_out_by_inputs, (gradient, kernel), images.shape),
        (Direction.WEIGHT_GRADIENT, written_out_by_weights, (images, gradient), kernel.shape),
    ):
        actual = computed(Convolution(direction, *work).call(), shape, *operands)
        np.testing.assert_allclose(actual, by_group(of, groups, *operands), atol=5e-5)


def test_a_kernel_is_packed_so() -> None:
    images, kernel, bias = normals(1, (1, 8, 8, 32), (3, 3, 4, 32), (32,))
    work = Direction.FORWARD, images.shape, kernel.shape, images.shape, 1, 1, 8, False, False
    packing = KernelPacking(*work, True)
    packed = computed(packing.call(), (packing.packed_size() // 4,), kernel)
    actual = computed(BiasedConvolution(*work, True).call(), images.shape, images, packed, bias)
    np.testing.assert_allclose(actual, by_group(written_out, 8, images, kernel) + bias, atol=5e-5)
    np.testing.assert_array_equal(
        computed(BiasedConvolution(*work, False).call(), images.shape, images, kernel, bias), actual
    )


@pytest.mark.parametrize(
    ("shape", "groups", "wide"),
    [((3, 3, 4, 128), 32, 8), ((3, 3, 2, 64), 32, 8), ((3, 3, 4, 12), 3, 0), ((3, 3, 3, 24), 8, 0)],
)
def test_only_groups_that_make_vectors_are_merged(shape: tuple[int, ...], groups: int, wide: int) -> None:
    assert KernelLayout(shape, groups).wide_size == 9 * wide * shape[3] * 4
