"""Occlusion maps, against loops over the squares."""

import jax
import numpy as np
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.inspection import occlusion
from tests.examples.plain import PlainNetwork

MODEL = PlainNetwork(num_classes=4, features=4)


@pytest.fixture(scope="module")
def variables() -> dict:
    return jaxnets.initial_variables(MODEL, jax.random.key(0), image_size=10)


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 10, 12, 3)).astype(np.float32)


def by_loops(variables: dict, classes: np.ndarray, window: int, stride: int, value: float) -> np.ndarray:
    forward = jax.jit(lambda batch: jax.nn.softmax(MODEL.apply(variables, batch, train=False)))
    maps = np.zeros((3, 10, 12))
    for image, (pixels, label) in enumerate(zip(images(), classes, strict=True)):
        whole = forward(pixels[None])[0, label]
        drops: list[list[list[float]]] = [[[] for _ in range(12)] for _ in range(10)]
        for top in [*range(0, 10 - window, stride), 10 - window]:
            for left in [*range(0, 12 - window, stride), 12 - window]:
                covered = pixels.copy()
                covered[top : top + window, left : left + window] = value
                drop = float(whole - forward(covered[None])[0, label])
                for row in range(top, top + window):
                    for column in range(left, left + window):
                        drops[row][column].append(drop)
        maps[image] = [[np.mean(cell) for cell in row] for row in drops]
    return maps


@pytest.mark.parametrize(("window", "stride", "value"), [(4, 3, 0.0), (5, 5, 0.7)])
def test_equals_loops_over_the_squares(variables: dict, window: int, stride: int, value: float) -> None:
    classes = np.array([3, 0, 1])
    counts: list[int] = []
    maps = occlusion(
        MODEL, variables, images(), classes,
        window=window, stride=stride, value=value, batch_size=7, done=counts.append,
    )  # fmt: skip
    np.testing.assert_allclose(maps, by_loops(variables, classes, window, stride, value), atol=1e-6)
    assert maps.min() < 0 < maps.max()
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_the_default_is_the_most_probable_class_and_a_quarter_of_the_side(variables: dict) -> None:
    best = np.asarray(MODEL.apply(variables, images(), train=False)).argmax(axis=1)
    np.testing.assert_allclose(
        occlusion(MODEL, variables, images()),
        occlusion(MODEL, variables, images(), best, window=2, stride=1),
        atol=1e-6,
    )


def test_unfit_windows_are_refused(variables: dict) -> None:
    for words, options in (
        (r"window=11; expected 1 to 10 pixels", {"window": 11}),
        (r"stride=5; expected 1 to 4 pixels, so that", {"window": 4, "stride": 5}),
    ):
        with pytest.raises(InputError, match=words):
            occlusion(MODEL, variables, images(), **options)
