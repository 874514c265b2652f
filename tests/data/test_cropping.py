"""Random crops: torchvision's boxes as a function of (seed, epoch, index), and pixels close to Pillow's."""

import hashlib
import importlib.resources
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxnets.data import cropping
from jaxnets.data.cropping import crop_draws, crop_into, random_resized_crop
from jaxnets.data.decoding import Box
from jaxnets.errors import InputError
from tests.tiers import slow_except

COUNT = 20_000
# Two-sample Kolmogorov-Smirnov, 20,000 draws against torchvision's 40,000, at p = 0.0001: 2.23 sqrt(1/n + 1/m).
LARGEST_GAP = 0.0193
SEED = st.integers(0, 2**63 - 1)
PLACE = st.integers(0, 2**40)


@cache
def references() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "references" / "preprocessing.npz") as file:
        return dict(file)


CASES = json.loads(str(references()["cases"]))
MIN_AREA = CASES["crop_area"][0]


@cache
def photo(name: str) -> bytes:
    return (importlib.resources.files("sklearn.datasets.images") / name).read_bytes()


@cache
def pixels_of_photo(name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(photo(name))))


def encoded(pixels: np.ndarray, kind: str, orientation: int = 1) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, kind, exif=exif)
    return file.getvalue()


def draws_of(seed: int, epoch: int, index: int) -> np.ndarray:
    return crop_draws(seed, np.array([epoch]), np.array([index]))[0]


def splitmix64(state: int) -> int:
    """Splitmix64 (Steele, Lea and Flood 2014) in Python integers."""
    value = (state + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def test_the_plain_generator_is_splitmix64() -> None:
    # The reference sequence of published implementations.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix64((1234567 + place * 0x9E3779B97F4A7C15) % 2**64) for place in range(4)] == published


@settings(max_examples=50, deadline=None)
@given(seed=SEED, epoch=PLACE, index=PLACE)
def test_draws_equal_those_of_python_integers(seed: int, epoch: int, index: int) -> None:
    key = splitmix64(splitmix64(splitmix64(seed) ^ epoch) ^ index)
    expected = [(splitmix64((key + place * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for place in range(1, 23)]
    assert draws_of(seed, epoch, index).tolist() == expected


def test_draws_and_boxes_are_the_same_on_every_machine() -> None:
    draws = draws_of(0, 0, 0)
    assert (draws.shape, draws.dtype) == ((22,), np.float64)
    assert draws[:3].tolist() == [0.049920065672091285, 0.6703283700586791, 0.6905413066080935]
    many = crop_draws(7, np.arange(1000) // 100, np.arange(1000) % 100)
    assert hashlib.sha256(many.astype("<f8").tobytes()).hexdigest().startswith("11f277870efea829")
    boxes = [random_resized_crop(427, 640, MIN_AREA, row) for row in many[:4]]
    assert boxes == [(18, 366, 340, 257), (152, 9, 209, 246), (142, 327, 246, 251), (20, 3, 388, 486)]


@settings(max_examples=50, deadline=None)
@given(seed=SEED, places=st.lists(st.tuples(PLACE, PLACE), min_size=1, max_size=20), data=st.data())
def test_draws_depend_on_seed_epoch_and_index_only(
    seed: int, places: list[tuple[int, int]], data: st.DataObject
) -> None:
    alone = [draws_of(seed, *place) for place in places]
    epochs, indices = np.array(data.draw(st.permutations(places))).T
    for epoch, index, draws in zip(epochs, indices, crop_draws(seed, epochs, indices), strict=True):
        np.testing.assert_array_equal(draws, alone[places.index((epoch, index))])


def test_the_type_of_the_indices_does_not_matter() -> None:
    expected = crop_draws(3, np.full(50, 2), np.arange(50))
    for kind in (np.int32, np.uint8, np.uint64):
        np.testing.assert_array_equal(crop_draws(3, np.full(50, 2, kind), np.arange(50, dtype=kind)), expected)


def test_all_draws_differ() -> None:
    draws = [draws_of(*place) for place in np.ndindex(6, 6, 6)]
    assert len(np.unique(draws)) == 6**3 * 22


def test_draws_are_uniform() -> None:
    draws = np.sort(crop_draws(5, np.arange(COUNT) // 4000, np.arange(COUNT) % 4000), axis=0)
    assert 0 <= draws.min() < draws.max() < 1
    # One-sample Kolmogorov-Smirnov for each of the 22, at p = 0.0001.
    steps = np.arange(COUNT + 1)[:, None] / COUNT
    gaps = np.maximum(draws - steps[:-1], steps[1:] - draws).max(axis=0)
    assert gaps.max() < 2.23 / COUNT**0.5


@pytest.mark.parametrize("neighbour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, -1), (2, 0, 0), (0, 0, 256)])
def test_neighbours_are_not_correlated(neighbour: tuple[int, int, int]) -> None:
    seed, epoch, index = np.array([1, 1, 1]) + neighbour
    count = np.arange(COUNT)
    one, other = crop_draws(1, np.ones_like(count), 1 + count), crop_draws(int(seed), epoch + 0 * count, index + count)
    both = np.corrcoef(one, other, rowvar=False)
    # 5 standard deviations for the largest of the 22 x 22 correlations, between two images and within one.
    assert np.abs(both[:22, 22:]).max() < 5 / COUNT**0.5
    assert np.abs(both[:22, :22] - np.eye(22)).max() < 5 / COUNT**0.5


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    min_area=st.floats(1e-6, 1),
    draws=st.lists(st.floats(0, 1 - 2**-53), min_size=22, max_size=22),
)
def test_boxes_lie_within_the_image(height: int, width: int, min_area: float, draws: list[float]) -> None:
    top, left, box_height, box_width = random_resized_crop(height, width, min_area, np.array(draws))
    assert 0 <= top < top + box_height <= height
    assert 0 <= left < left + box_width <= width
    # The aspect ratio is 3:4 to 4:3, up to rounding, unless no such box fits into the image.
    assert (box_width - 0.5) / (box_height + 0.5) <= 4 / 3
    assert (box_height - 0.5) / (box_width + 0.5) <= 4 / 3


@pytest.mark.parametrize("largest", [0.0, 1 - 2**-53])
def test_boxes_reach_the_edges_and_no_further(largest: float) -> None:
    top, left, height, width = random_resized_crop(5000, 4999, 0.08, np.array([largest] * 2 + [0.0, 0.5] * 10))
    assert (height, width) == (1414, 1414)
    assert (top, left) == ((0, 0) if largest == 0 else (5000 - 1414, 4999 - 1414))


@pytest.mark.parametrize(("height", "width"), CASES["crop_sizes"])
def test_the_same_draws_give_torchvisions_boxes(height: int, width: int) -> None:
    boxes, numbers = (references()[f"crop/{height}x{width}/{name}"] for name in ("replayed", "draws"))
    fallbacks = 0
    for (top, left, box_height, box_width), shape_draws in zip(boxes.tolist(), numbers, strict=True):
        # torchvision draws integers for the offsets; these draws are the centres of their intervals in [0, 1).
        place = (top + 0.5) / (height - box_height + 1), (left + 0.5) / (width - box_width + 1)
        box = random_resized_crop(height, width, MIN_AREA, np.array([*place, *shape_draws]))
        # A side may differ by rounding: torch computes in single precision.
        assert np.abs(np.subtract(box, (top, left, box_height, box_width))).max() <= 1
        fallbacks += box[2:] == (100, 133)
    assert (fallbacks > 0) == (width == 300), "tries that all fail are to be among them"


def test_boxes_of_extreme_images_are_torchvisions() -> None:
    for height, width, *box in references()["crop/fallback"].tolist():
        for index in range(20):
            assert random_resized_crop(height, width, MIN_AREA, draws_of(0, 0, index)) == tuple(box)


def gap(values: np.ndarray, quantiles: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance between values and a distribution given by evenly spaced quantiles."""
    values = np.sort(values)
    shares = np.linspace(0, 1, len(quantiles))
    below, up_to = (np.searchsorted(values, quantiles, side) / len(values) for side in ("left", "right"))
    return max((below - shares).max(), (shares - up_to).max())


@pytest.mark.parametrize(("height", "width"), CASES["crop_sizes"])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    draws = crop_draws(0, np.zeros(COUNT, int), np.arange(COUNT))
    boxes = np.array([random_resized_crop(height, width, MIN_AREA, row) for row in draws])
    top, left, box_height, box_width = boxes.T
    figures = {
        "area": box_height * box_width / (height * width),
        "aspect": np.log(box_width / box_height),
        "top": top,
        "left": left,
        "bottom": top + box_height,
        "right": left + box_width,
    }
    for name, values in figures.items():
        quantiles = references()[f"crop/{height}x{width}/{name}"]
        assert gap(values.astype(np.float32), quantiles) < LARGEST_GAP, name


def pillow_crop(pixels: np.ndarray, box: Box, side: int) -> np.ndarray:
    """torchvision's resized_crop of a PIL image."""
    top, left, height, width = box
    image = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).astype(float)


@pytest.fixture
def crop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """`crop_into` with a fixed box."""

    def crop(image: bytes | np.ndarray, box: Box, side: int) -> np.ndarray:
        monkeypatch.setattr(cropping, "random_resized_crop", lambda *_: box)
        pixels = np.zeros((side, side, 3), np.uint8)
        crop_into(pixels, image, MIN_AREA, np.zeros(22))
        return pixels

    return crop


# Top, left, height and width of regions with structure. Multiples of 8, so that a reduced JPEG has the same box.
BOXES = {"china.jpg": (64, 72, 296, 344), "flower.jpg": (24, 152, 304, 240)}
# Box pixels per output pixel, and the largest mean difference from Pillow, which averages with a wider kernel.
RATIOS = {
    "enlarged": (0.8, 0.5),
    "linear": (1.25, 4.0),
    "linear, nearly twice": (1.5, 6.0),
    "area": (2.3, 4.0),
    "area, a quarter": (4.6, 4.0),
    "area, an eighth": (9.2, 4.5),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("ratio", slow_except(list(RATIOS)[:1], RATIOS))
def test_crops_are_close_to_pillows(name: str, ratio: str, crop_at: Callable[..., np.ndarray]) -> None:
    pixels, box = pixels_of_photo(name), BOXES[name]
    scale, bound = RATIOS[ratio]
    side = round(min(box[2:]) / scale)
    from_pixels, from_jpeg = crop_at(pixels, box, side), crop_at(photo(name), box, side)
    np.testing.assert_array_equal(crop_at(encoded(pixels, "png"), box, side), from_pixels)
    if scale < 2:
        np.testing.assert_array_equal(from_jpeg, from_pixels)
    top, left, height, width = box
    wrong = [(top + down, left + across, height, width) for down, across in ((8, 0), (-8, 0), (0, 8), (0, -8))]
    wrong += [(top, left, width, height), (left, top, height, width), (top, left, height - 24, width)]
    for actual in (from_pixels, from_jpeg):
        assert np.abs(actual - pillow_crop(pixels, box, side)).mean() < bound
        # Shows that the bound is tight: shifted boxes and rotated images are far beyond it.
        others = [pillow_crop(pixels, other, side) for other in wrong]
        others += [turned(pillow_crop(pixels, box, side)) for turned in (np.fliplr, np.flipud, lambda x: x[..., ::-1])]
        for other in others:
            assert np.abs(actual - other).mean() > 2 * bound


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("scale", [2.3, 4.6, 9.2])
def test_crops_of_a_reduced_jpeg_are_less_than_a_pixel_off(
    name: str, scale: float, crop_at: Callable[..., np.ndarray]
) -> None:
    # The box is rounded to pixels of the reduced image, which moves each side by up to half of a reduced pixel.
    pixels, (top, left, height, width) = pixels_of_photo(name), BOXES[name]
    side = round(min(height, width) / scale)
    box = (top + 7, left + 5, height - 3, width - 1)
    actual = crop_at(photo(name), box, side)

    def error(pixels_off: float) -> float:
        down, across = round(pixels_off * height / side), round(pixels_off * width / side)
        moved = (box[0] - down, box[1] - across, *box[2:])
        return float(np.abs(actual - pillow_crop(pixels, moved, side)).mean())

    least = min(error(off) for off in (-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75))
    assert least < 9
    assert least < error(-2) / 2
    assert least < error(2) / 2


def corner_shift(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest displacement of a quarter with structure in pixels: least squares on the slopes, down and across."""
    half, shifts = len(actual) // 2, [0.0]
    for down, across in np.ndindex(2, 2):
        place = np.s_[down * half : (down + 1) * half, across * half : (across + 1) * half]
        wanted, difference = expected[place].mean(-1), (actual[place] - expected[place]).mean(-1)
        slopes = np.stack([slope.ravel() for slope in (*np.gradient(wanted), np.ones(wanted.shape))], axis=1)
        if (slopes[:, :2] ** 2).mean(axis=0).min() > 50:
            shifts += np.linalg.lstsq(slopes, difference.ravel(), rcond=None)[0][:2].tolist()
    return float(np.abs(shifts).max())


@pytest.mark.parametrize("orientation", [1, 3, 8])
@pytest.mark.parametrize("side", [48, 64, 100])
def test_reduced_jpegs_keep_place_and_quality(side: int, orientation: int, crop_at: Callable[..., np.ndarray]) -> None:
    # The sides are not multiples of eight, nor are the boxes.
    pixels = pixels_of_photo("china.jpg")[:421, :637]
    file = encoded(pixels, "jpeg", orientation)
    stored = np.asarray(Image.open(io.BytesIO(file)))
    upright = {1: stored, 3: stored[::-1, ::-1], 8: np.rot90(stored)}[orientation]
    rows, columns = upright.shape[:2]
    random, differences, shifts = np.random.default_rng(side), [], []
    for _ in range(12):
        height, width = (int(random.integers(2 * side, limit)) for limit in (min(rows, 400), min(columns, 400)))
        box = (int(random.integers(rows - height + 1)), int(random.integers(columns - width + 1)), height, width)
        actual = crop_at(file, box, side).astype(float)
        expected = pillow_crop(np.ascontiguousarray(upright), box, side)
        differences.append(np.abs(actual - expected).mean())
        shifts.append(corner_shift(actual, expected))
    assert np.mean(differences) < 2
    assert np.max(shifts) < 0.25


def test_crops_are_written_into_the_batch() -> None:
    batch = np.full((3, 40, 40, 3), 7, np.uint8)
    draws = draws_of(0, 0, 1)
    crop_into(batch[1], photo("china.jpg"), MIN_AREA, draws)
    assert (batch[[0, 2]] == 7).all()
    alone = np.zeros((40, 40, 3), np.uint8)
    crop_into(alone, photo("china.jpg"), MIN_AREA, draws)
    np.testing.assert_array_equal(batch[1], alone)
    # The draws determine the box.
    pixels = pixels_of_photo("china.jpg")
    box = random_resized_crop(*pixels.shape[:2], MIN_AREA, draws)
    assert np.abs(batch[1] - pillow_crop(pixels, box, 40)).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_of_the_upright_image(orientation: int, crop_at: Callable[..., np.ndarray]) -> None:
    file = encoded(pixels_of_photo("flower.jpg")[:160, 200:420], "jpeg", orientation)
    turn = {
        1: lambda stored: stored,
        2: np.fliplr,
        3: lambda stored: np.rot90(stored, 2),
        4: np.flipud,
        5: lambda stored: stored.swapaxes(0, 1),
        6: lambda stored: np.rot90(stored, -1),
        7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation]
    upright = np.ascontiguousarray(turn(np.asarray(Image.open(io.BytesIO(file)))))
    assert upright.shape == ((160, 220, 3) if orientation < 5 else (220, 160, 3))
    box = (11, 25, 100, 90)
    np.testing.assert_array_equal(crop_at(file, box, 64), crop_at(upright, box, 64))


def test_crops_of_any_array(crop_at: Callable[..., np.ndarray]) -> None:
    pixels = pixels_of_photo("china.jpg")
    box = (30, 40, 120, 110)
    for view in (pixels[::2, ::2], pixels[::-1], pixels[:, ::-1], pixels[..., ::-1], pixels.swapaxes(0, 1)):
        np.testing.assert_array_equal(crop_at(view, box, 64), crop_at(np.ascontiguousarray(view), box, 64))
    fixed = pixels.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(crop_at(fixed, box, 64), crop_at(pixels, box, 64))
    grey = np.ascontiguousarray(pixels[..., 0])
    for image in (grey, grey[..., None], encoded(grey, "png")):
        np.testing.assert_array_equal(crop_at(image, box, 64), crop_at(np.stack([grey] * 3, axis=-1), box, 64))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    side=st.integers(1, 40),
    index=PLACE,
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_crops_of_any_size_stay_within_the_image(
    height: int, width: int, side: int, index: int, colour: tuple[int, int, int]
) -> None:
    # Pixels outside the image would be visible in the crop.
    around = np.random.default_rng(0).integers(0, 256, (height + 8, width + 8, 3), dtype=np.uint8)
    around[4:-4, 4:-4] = colour
    pixels = np.zeros((side, side, 3), np.uint8)
    crop_into(pixels, around[4:-4, 4:-4], MIN_AREA, draws_of(0, 0, index))
    assert (pixels == colour).all()


def test_invalid_images_are_refused() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    reasons = {b"": "empty file", b"text": "unknown format", photo("china.jpg")[:999]: "unreadable image"}
    for image, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            crop_into(pixels, image, MIN_AREA, draws_of(0, 0, 0))
