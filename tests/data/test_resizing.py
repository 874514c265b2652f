"""Compiled resizing gives Pillow's pixels, touches nothing else, and is replaced by Pillow where it fails."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxnets.data import resizing
from jaxnets.data.resizing import resize
from tests.data.photos import PHOTOS

AXIS = resizing._axis
BILINEAR = Image.Resampling.BILINEAR


def by_pillow(pixels: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Pillow's resize, whose first pass shrinks rows."""
    top, left, height, width = box
    image = Image.fromarray(pixels)
    rows = image.resize((size, image.height), BILINEAR, box=(left, 0, left + width, image.height))
    return np.asarray(rows.resize((size, size), BILINEAR, box=(0, top, size, top + height))).astype(int)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 60),
    corners=st.lists(st.integers(0, 64), min_size=4, max_size=4),
    seed=st.integers(0, 9),
)
def test_any_box_of_any_image_is_pillows(height: int, width: int, size: int, corners: list[int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    (top, bottom), (left, right) = (sorted((a / 64 * side, b / 64 * side)) for side, a, b in zip(
        (height, width), corners[:2], corners[2:], strict=True
    ))  # fmt: skip
    if bottom - top < 0.5 or right - left < 0.5:
        top, left, bottom, right = 0.0, 0.0, float(height), float(width)
    box = (top, left, bottom - top, right - left)
    assert np.abs(resize(pixels, box, size) - by_pillow(pixels, box, size)).max() <= 1


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.1, 1.46, 2.0, 2.7, 4.0, 9.0])
def test_photos_differ_in_few_pixels(name: str, scale: float) -> None:
    pixels = np.asarray(Image.open(PHOTOS[name]).convert("RGB"))
    box = (3.25, 10.5, 280.5, 270.25)
    expected = by_pillow(pixels, box, round(270 / scale))
    error = np.abs(resize(pixels, box, round(270 / scale)) - expected)
    assert error.max() <= 1
    assert (error > 0).mean() < 0.01
    # The bound is tight: a box that is moved by a tenth of a pixel is beyond it.
    moved = resize(pixels, (3.25 + 0.1 * scale, *box[1:]), round(270 / scale))
    assert (moved != expected).mean() > 0.1


def test_the_code_is_used_and_writes_only_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resizing._code_works()
    monkeypatch.setattr(resizing, "_by_pillow", lambda *_: pytest.fail("Pillow was called"))
    pixels = np.random.default_rng(0).integers(0, 256, (41, 57, 3), np.uint8)
    for size in (6, 7, 16, 33):
        around = np.full((size + 2, size, 3), 77, np.uint8)
        resize(pixels, (0, 0, 41, 57), size, out=around[1:-1])
        assert (around[[0, -1]] == 77).all()


def test_views_are_read_as_their_copies_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    views = (
        pixels[5:50, 7:60],
        pixels[::-1],
        pixels[:, ::-1],
        pixels[::2, ::2],
        pixels.swapaxes(0, 1),
        pixels[..., ::-1],
    )
    for view in views:
        box = (1.5, 2.25, view.shape[0] - 4, view.shape[1] - 5)
        np.testing.assert_array_equal(resize(view, box, 20), resize(np.ascontiguousarray(view), box, 20))


def test_code_that_fails_is_replaced_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, box = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), (1.5, 2.25, 50, 70)
    usual = resize(pixels, box, 20)
    monkeypatch.setattr(resizing, "_code_works", resizing._code_works.__wrapped__)
    monkeypatch.setattr(resizing, "_axis", lambda inputs, first, *rest: AXIS(inputs, first / 2, *rest))
    with pytest.warns(UserWarning, match="resized by Pillow, which is slower.*not those of Pillow"):
        replaced = resize(pixels, box, 20)
    assert np.abs(replaced - usual.astype(int)).max() <= 1
