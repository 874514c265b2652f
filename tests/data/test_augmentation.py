"""Augmentation: torchvision's values and distributions, independent of the number of devices."""

import importlib.resources
import io
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxnets.data.augmentation import color_jitter, image_keys, mix, random_erasing, random_flip, random_shift
from tests.tiers import slow_except

SEVERAL = 4000


@cache
def references() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "references" / "preprocessing.npz") as file:
        return dict(file)


CASES = json.loads(str(references()["cases"]))


def photo(name: str) -> np.ndarray:
    top, left, height, width = CASES["jittered"]
    file = importlib.resources.files("sklearn.datasets.images") / name
    return np.asarray(Image.open(io.BytesIO(file.read_bytes())))[top : top + height, left : left + width]


def keys_of(seed: int, count: int) -> jax.Array:
    return jax.jit(image_keys, static_argnums=1)(jax.random.key(seed), count)


def gap(values: np.ndarray, quantiles: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance between values and a distribution given by evenly spaced quantiles."""
    values = np.sort(values)
    shares = np.linspace(0, 1, len(quantiles))
    below, up_to = (np.searchsorted(values, quantiles, side) / len(values) for side in ("left", "right"))
    return max((below - shares).max(), (shares - up_to).max())


def largest_gap(count: int, others: float = np.inf) -> float:
    """Kolmogorov-Smirnov at p = 0.0001."""
    return 2.23 * (1 / count + 1 / others) ** 0.5


def random_images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def augment(images: jax.Array, targets: jax.Array, axis_name: str | None) -> tuple[jax.Array, ...]:
    """All random augmentations, with keys per image and per batch."""
    shift_key, flip_key, colour_key, erasing_key, mix_key = jax.random.split(jax.random.key(5), 5)
    shifted = random_shift(image_keys(shift_key, len(images), axis_name), images, 2)
    flipped = random_flip(image_keys(flip_key, len(images), axis_name), shifted, 0.5)
    jittered = color_jitter(image_keys(colour_key, len(images), axis_name), flipped, 0.4)
    erased = random_erasing(image_keys(erasing_key, len(images), axis_name), jittered, 0.5)
    return flipped, erased, *mix(mix_key, erased, targets, 0.2, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_images_do_not_depend_on_the_number_of_devices(replicas: int) -> None:
    images, targets = random_images(16, 12, 10), np.eye(16, dtype=np.float32)
    whole = jax.jit(partial(augment, axis_name=None))(images, targets)
    shards = [array.reshape(replicas, -1, *array.shape[1:]) for array in (images, targets)]
    parts = jax.jit(jax.vmap(partial(augment, axis_name="replicas"), axis_name="replicas"))(*shards)
    for one, several in zip(whole, parts, strict=True):
        # The order of summation in means differs.
        np.testing.assert_allclose(several.reshape(one.shape), one, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(parts[0].reshape(images.shape), whole[0])
    assert len(np.unique(whole[1].reshape(16, -1), axis=0)) == 16


@pytest.mark.fast
def test_every_image_has_its_own_key() -> None:
    keys = jax.jit(jax.vmap(lambda _: image_keys(jax.random.key(3), 5, "replicas"), axis_name="replicas"))(
        jnp.arange(3)
    )
    data = np.asarray(jax.random.key_data(keys)).reshape(15, -1)
    np.testing.assert_array_equal(data, jax.random.key_data(keys_of(3, 15)))
    assert len(np.unique(data, axis=0)) == 15
    # An image keeps its key when the batch grows.
    np.testing.assert_array_equal(jax.random.key_data(keys_of(3, 4)), data[:4])
    assert not (np.asarray(jax.random.key_data(keys_of(4, 15))) == data).all(axis=1).any()


def test_random_shift_moves_each_image_whole() -> None:
    images = jnp.zeros((SEVERAL, 9, 9, 3), jnp.uint8).at[:, 4, 4].set(jnp.array([1, 2, 3], jnp.uint8))
    shifted = np.asarray(jax.jit(random_shift, static_argnums=2)(keys_of(0, SEVERAL), images, 2))
    places = np.argwhere(shifted[..., 0] == 1)
    assert len(places) == SEVERAL
    np.testing.assert_array_equal(shifted[tuple(places.T)], np.tile([1, 2, 3], (SEVERAL, 1)))
    rows, columns = places[:, 1:].T - 2
    assert rows.min() == columns.min() == 0
    # All 25 offsets are equally likely: chi-square with 24 degrees of freedom at p = 0.0001.
    counts = np.bincount(5 * rows + columns)
    assert len(counts) == 25
    assert ((counts - SEVERAL / 25) ** 2).sum() / (SEVERAL / 25) < 58.6


@pytest.mark.fast
def test_random_shift_is_padding_and_cropping() -> None:
    images = random_images(30, 5, 7)
    shifted = np.asarray(jax.jit(random_shift, static_argnums=2)(keys_of(1, 30), images, 3))
    for image, result in zip(images, shifted, strict=True):
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
        crops = [padded[row : row + 5, column : column + 7] for row in range(7) for column in range(7)]
        assert sum(np.array_equal(result, crop) for crop in crops) == 1
    np.testing.assert_array_equal(random_shift(keys_of(1, 30), images, 0), images)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_random_flip_mirrors_left_to_right(probability: float) -> None:
    images = random_images(SEVERAL, 2, 3)
    flipped = np.asarray(jax.jit(random_flip)(keys_of(0, SEVERAL), images, probability))
    assert flipped.dtype == np.uint8
    same, mirrored = ((flipped == other).all((1, 2, 3)) for other in (images, images[:, :, ::-1]))
    assert (same | mirrored).all()
    spread = (probability * (1 - probability) / SEVERAL) ** 0.5
    assert abs(mirrored[~(same & mirrored)].mean() - probability) <= 4 * spread


def jittered(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """torchvision's adjust_brightness, adjust_contrast and adjust_saturation for values from 0 to 255, in float64."""
    luma = np.array([0.2989, 0.587, 0.114])
    image = np.clip(brightness * image, 0, 255)
    image = np.clip(contrast * image + (1 - contrast) * (image @ luma).mean(), 0, 255)
    return np.clip(saturation * image + (1 - saturation) * (image @ luma)[..., None], 0, 255)


@pytest.mark.parametrize("name", CASES["photos"])
def test_the_plain_jitter_is_torchvisions(name: str) -> None:
    for factors, expected in zip(CASES["factors"], references()[f"colour/{name}/changed"], strict=True):
        np.testing.assert_allclose(jittered(photo(name), *factors)[::3, ::3], expected, rtol=0, atol=1e-3)


def factors_of(keys: jax.Array, strength: float) -> np.ndarray:
    """The three factors [N, 3] of each key, computed from augmented constant images."""

    def jitter(top: list[int], bottom: list[int]) -> np.ndarray:
        image = jnp.broadcast_to(jnp.array([[top], [bottom]], jnp.uint8), (len(keys), 2, 1, 3))
        return np.asarray(jax.jit(color_jitter, static_argnums=2)(keys, image, strength), np.float64)

    # Contrast keeps a constant grey, and saturation any grey, up to 0.0001: torchvision's weights add up to 0.9999.
    brightness = jitter([100] * 3, [100] * 3)[:, 0, 0, 0] / 100
    two_greys = jitter([90] * 3, [110] * 3)[:, :, 0, 0]
    contrast = (two_greys[:, 1] - two_greys[:, 0]) / 20 / brightness
    colour = jitter([110, 100, 90], [110, 100, 90])[:, 0, 0]
    return np.stack([brightness, contrast, (colour[:, 0] - colour[:, 2]) / 20 / brightness / contrast], axis=1)


@pytest.mark.parametrize("strength", slow_except([0.5], [0.1, 0.5]))
def test_color_jitter_is_torchvisions(strength: float) -> None:
    keys = keys_of(1, 64)
    for name in CASES["photos"]:
        images = np.broadcast_to(photo(name), (64, *photo(name).shape))
        actual = np.asarray(jax.jit(color_jitter, static_argnums=2)(keys, images, strength))
        assert actual.dtype == np.float32
        for image, factors in zip(actual, factors_of(keys, strength), strict=True):
            # Up to the error of the computed factors.
            np.testing.assert_allclose(image, jittered(photo(name), *factors), rtol=0, atol=0.1)


def test_the_factors_of_color_jitter_are_uniform() -> None:
    factors = factors_of(keys_of(2, SEVERAL), 0.5)
    for values in factors.T:
        assert gap(values - 0.5, np.linspace(0, 1, 201)) < largest_gap(SEVERAL)
    assert np.abs(np.corrcoef(factors, rowvar=False) - np.eye(3)).max() < 4 / SEVERAL**0.5
    # Factors are not negative, as in torchvision: 0 to 2.5 here.
    plain = jnp.full((SEVERAL, 1, 1, 3), 100, jnp.uint8)
    brightness = np.asarray(jax.jit(color_jitter, static_argnums=2)(keys_of(2, SEVERAL), plain, 1.5))[:, 0, 0, 0] / 250
    assert gap(brightness, np.linspace(0, 1, 201)) < largest_gap(SEVERAL)


def rectangles(changed: np.ndarray) -> np.ndarray:
    """Top, left, height and width [N, 4] of the marks in each image [N, H, W], which must fill a rectangle."""
    sides = []
    for axis in (2, 1):
        marked = changed.any(axis)
        first, last = marked.argmax(1), marked.shape[1] - marked[:, ::-1].argmax(1)
        sides.append((first, np.where(marked.any(1), last - first, 0)))
    (top, height), (left, width) = sides
    np.testing.assert_array_equal(changed.sum((1, 2)), height * width)
    return np.stack([top, left, height, width], axis=1)


def in_parts(task: Callable[[jax.Array], jax.Array], keys: jax.Array, parts: int) -> np.ndarray:
    return np.concatenate([np.asarray(jax.jit(task)(part)) for part in keys.reshape(parts, -1)])


def test_random_erasing_is_distributed_as_torchvisions() -> None:
    height, width = CASES["erased_size"]

    def erased(keys: jax.Array) -> jax.Array:
        return random_erasing(keys, jnp.ones((len(keys), height, width, 1)), 1.0)[..., 0] == 0

    boxes = rectangles(in_parts(erased, keys_of(3, 2 * SEVERAL), 8))
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
        quantiles = references()[f"erased/{name}"]
        assert gap(values.astype(np.float32), quantiles) < largest_gap(2 * SEVERAL, 20_000), name


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_random_erasing_sets_one_rectangle_to_zero(probability: float) -> None:
    images = np.random.default_rng(0).standard_normal((SEVERAL // 4, 20, 31, 3)).astype(np.float32)
    result = np.asarray(jax.jit(random_erasing)(keys_of(4, len(images)), images, probability))
    assert result.dtype == np.float32
    changed = (result == 0).all(-1)
    np.testing.assert_array_equal(result, np.where(changed[..., None], 0, images))
    _, _, height, width = rectangles(changed).T
    spread = (probability * (1 - probability) / len(images)) ** 0.5
    assert abs((height > 0).mean() - probability) <= 4 * spread
    assert ((height > 0) == (width > 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 10), (10, 1), (7, 9), (4, 40)])
def test_random_erasing_fits_any_image(size: tuple[int, int]) -> None:
    images = jnp.ones((500, *size, 1), jnp.bfloat16)
    result = jax.jit(random_erasing)(keys_of(5, 500), images, 1.0)
    assert result.dtype == jnp.bfloat16
    erased = np.asarray(result)[..., 0] == 0
    rectangles(erased)
    # Rectangles reach every edge.
    assert erased.any(0).all()


def mixed(seed: int, count: int, mixup: float, cutmix: float) -> tuple[np.ndarray, ...]:
    """Images and one-hot targets, before and after mixing."""
    images = np.random.default_rng(seed).standard_normal((count, 12, 17, 3)).astype(np.float32)
    targets = np.eye(count, dtype=np.float32)
    result = jax.jit(mix, static_argnums=(3, 4))(jax.random.key(seed), images, targets, mixup, cutmix)
    return images, targets, *map(np.asarray, result)


def neighbours(array: np.ndarray) -> np.ndarray:
    """Each entry's partner: 1, 0, 3, 2, ...; the last of an odd number is its own partner."""
    places = [[place + 1, place] for place in range(0, len(array) - 1, 2)]
    return array[np.array([*np.ravel(places), *range(len(array) // 2 * 2, len(array))], int)]


@pytest.mark.parametrize("count", slow_except([1, 5], [1, 5, 8]))
@pytest.mark.parametrize("seed", slow_except([0], range(4)))
def test_mixup_is_the_formula(count: int, seed: int) -> None:
    images, targets, new_images, new_targets = mixed(seed, count, 0.8, 0.0)
    share = new_targets[0, 0]
    if count > 1:
        assert 0 < share < 1
    for new, old in ((new_images, images), (new_targets, targets)):
        assert new.dtype == np.float32
        np.testing.assert_allclose(new, share * old + (1 - share) * neighbours(old), rtol=0, atol=1e-6)
    if count % 2:
        np.testing.assert_allclose(new_images[-1], images[-1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(new_targets.sum(1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", slow_except([1, 5], [1, 5, 8]))
@pytest.mark.parametrize("seed", slow_except([0], range(4)))
def test_cutmix_pastes_a_rectangle_and_counts_its_area(count: int, seed: int) -> None:
    images, targets, new_images, new_targets = mixed(seed, count, 0.0, 1.0)
    foreign = (new_images != images).all(-1)
    np.testing.assert_array_equal(new_images, np.where(foreign[..., None], neighbours(images), images))
    rectangles(foreign)
    pairs = count // 2 * 2
    # The batch shares one rectangle. A last image without a partner is unchanged.
    np.testing.assert_array_equal(foreign[:pairs], np.broadcast_to(foreign[0], (pairs, 12, 17)))
    assert not foreign[pairs:].any()
    area = foreign[0].mean()
    np.testing.assert_allclose(new_targets, (1 - area) * targets + area * neighbours(targets), rtol=0, atol=1e-6)
    np.testing.assert_allclose(new_targets.sum(1), 1, rtol=0, atol=1e-6)


def weights_of(seed: int, count: int, size: tuple[int, int], mixup: float, cutmix: float) -> tuple[np.ndarray, ...]:
    """The share of an image's own pixels [count, H, W] for each of many keys, and that of its own target [count]."""
    images = jnp.stack([jnp.ones((*size, 1)), jnp.zeros((*size, 1))])

    def weights(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        new_images, new_targets = mix(key, images, jnp.eye(2), mixup, cutmix)
        return new_images[0, ..., 0], new_targets[0, 0]

    return tuple(map(np.asarray, jax.jit(jax.vmap(weights))(jax.random.split(jax.random.key(seed), count))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "quantile"),
    [
        # Beta distributions whose quantile function has a closed form.
        pytest.param(1.0, lambda share: share, marks=pytest.mark.slow),
        (0.5, lambda share: np.sin(np.pi / 2 * share) ** 2),
        pytest.param(2.0, lambda share: 0.5 - np.sin(np.arcsin(1 - 2 * share) / 3), marks=pytest.mark.slow),
    ],
)
def test_the_share_of_mixup_is_betas(alpha: float, quantile: Callable[[np.ndarray], np.ndarray]) -> None:
    pixels, shares = weights_of(0, SEVERAL, (1, 2), alpha, 0.0)
    assert gap(shares, quantile(np.linspace(0, 1, 201))) < largest_gap(SEVERAL)
    np.testing.assert_allclose(pixels, np.broadcast_to(shares[:, None, None], pixels.shape), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", slow_except([1.0], CASES["cutmix_alphas"]))
def test_the_share_of_cutmix_is_distributed_as_torchvisions(alpha: float) -> None:
    height, width = CASES["cutmix_size"]
    pixels, shares = weights_of(1, SEVERAL, (height, width), 0.0, alpha)
    np.testing.assert_allclose(shares, pixels.mean((1, 2)), rtol=0, atol=1e-6)
    assert gap(shares, references()[f"cutmix/{alpha}"]) < largest_gap(SEVERAL, 10_000)
    # The centre is uniform: pixels in the middle are replaced more often than in a corner, symmetrically.
    over = 1 - pixels.mean(0)
    assert over[height // 2, width // 2] > over[0, 0] + 0.1
    for mirrored in (np.fliplr(over), np.flipud(over)):
        assert np.abs(over - mirrored).max() < 0.05
    top, left, box_height, box_width = rectangles(pixels == 0).T
    whole = (top > 0) & (left > 0) & (top + box_height < height) & (left + box_width < width) & (box_height > 0)
    # The rectangle has the image's aspect ratio, up to the rounding of half a side.
    assert np.abs(box_height / height - box_width / width)[whole].max() <= 2 / width


@pytest.mark.slow
def test_a_coin_decides_between_mixup_and_cutmix() -> None:
    pixels, shares = weights_of(2, SEVERAL, (12, 10), 1.0, 1.0)
    plain = (np.abs(pixels - pixels[:, :1, :1]) < 1e-6).all((1, 2))
    mixups = plain & (pixels[:, 0, 0] > 0) & (pixels[:, 0, 0] < 1)
    assert set(np.unique(pixels[~mixups])) == {0.0, 1.0}
    rectangles(pixels[~mixups] == 0)
    np.testing.assert_allclose(shares, pixels.mean((1, 2)), rtol=0, atol=1e-6)
    assert abs(mixups.mean() - 0.5) < 4 * 0.5 / SEVERAL**0.5
    assert gap(shares[mixups], np.linspace(0, 1, 201)) < largest_gap(mixups.sum())


@pytest.mark.slow
def test_mix_returns_the_dtype_of_the_images() -> None:
    images, targets = jnp.ones((2, 4, 4, 3), jnp.bfloat16), jnp.eye(2)
    new_images, new_targets = jax.jit(mix, static_argnums=(3, 4))(jax.random.key(0), images, targets, 0.5, 0.5)
    assert (new_images.dtype, new_targets.dtype) == (jnp.bfloat16, jnp.float32)
