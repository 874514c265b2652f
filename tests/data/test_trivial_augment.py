"""TrivialAugment: torchvision's exact pixels and operations, and uniform draws that depend on the key only."""

import json
import zlib
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from jaxnets.data import trivial_augment as module
from jaxnets.data.augmentation import image_keys
from jaxnets.data.trivial_augment import BINS, OPERATIONS, apply, draw, signed_magnitudes, trivial_augment
from tests.tiers import slow_except

SEVERAL = 20_000
AXIS = "replicas"


@cache
def references() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "references" / "trivial_augment.npz") as file:
        return dict(file)


ABOUT = json.loads(str(references()["about"]))


def keys_of(seed: int, count: int) -> jax.Array:
    return jax.jit(image_keys, static_argnums=1)(jax.random.key(seed), count)


@cache
def augmented() -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """Keys, images and augmented images, with a shape that other tests have compiled."""
    keys = keys_of(1, len(cases_of(range(BINS))))
    shape = (len(keys), *references()["image/kept"].shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return keys, images, np.asarray(jax.jit(trivial_augment)(keys, images))


def changed(image: np.ndarray, cases: np.ndarray) -> np.ndarray:
    """The results of one image for the cases [N, 3]: operation, bin, and 1 if negative."""
    operations, bins, negative = cases.T
    images = np.broadcast_to(image, (len(cases), *image.shape))
    return np.asarray(jax.jit(apply)(images, operations, bins, negative == 1))


def cases_of(bins: range) -> np.ndarray:
    return np.array([(place, bin_, sign) for place in range(len(OPERATIONS)) for bin_ in bins for sign in (0, 1)])


def test_the_space_is_torchvisions() -> None:
    assert list(OPERATIONS) == ABOUT["operations"]
    assert BINS == ABOUT["bins"] == 31
    space = signed_magnitudes()
    assert space.dtype == np.float32
    np.testing.assert_array_equal(space, references()["magnitudes"])
    np.testing.assert_array_equal((space[..., 0] != space[..., 1]).any(1), references()["signed"])


def test_each_operation_gives_torchvisions_pixels() -> None:
    image, expected = references()["image/kept"], references()["pixels"]
    actual = changed(image, cases_of(range(BINS))).reshape(len(OPERATIONS), BINS, 2, *image.shape)
    assert actual.dtype == np.uint8
    gaps = np.abs(actual[:, ABOUT["kept_bins"]].astype(int) - expected).max((1, 2, 3, 4, 5))
    assert dict(zip(OPERATIONS, gaps, strict=True)) == dict.fromkeys(OPERATIONS, 0)


@pytest.mark.parametrize("name", slow_except([name for name in ABOUT["images"] if name != "large"], ABOUT["images"]))
def test_every_case_gives_torchvisions_pixels(name: str) -> None:
    # For the large image every fifth magnitude, which includes rotations by 90 degrees.
    cases = cases_of(range(0, BINS, 5) if name == "large" else range(BINS))
    checksums = [zlib.crc32(image.tobytes()) for image in changed(references()[f"image/{name}"], cases)]
    different = checksums != references()[f"checksums/{name}"][tuple(cases.T)]
    assert [(OPERATIONS[place], bin_, sign) for place, bin_, sign in cases[different]] == []


def test_autocontrast_rounds_as_pillow() -> None:
    """Every lowest and highest level. Pillow's formula in float64 rounds 12,094 of the levels down by one."""
    low, high = np.triu_indices(256, 1)
    actual = np.asarray(jax.jit(module._stretching)(low, high))
    levels = np.arange(256)
    scale = 255 / (high - low)
    expected = np.clip((levels * scale[:, None] + (-low * scale)[:, None]).astype(int), 0, 255)
    within = (levels >= low[:, None]) & (levels <= high[:, None])
    np.testing.assert_array_equal(actual[within], expected[within])
    exact = 255 * (levels - low[:, None]) // (high - low)[:, None]
    assert (actual != exact)[within].sum() == 12_094
    plain = jax.jit(module._stretching)(np.array([0, 77, 255]), np.array([0, 77, 255]))
    np.testing.assert_array_equal(plain, np.tile(levels, (3, 1)))


def test_blends_round_as_pillow() -> None:
    """All pairs of grey levels and all factors: a float32 product and a float32 sum, truncated."""
    other, own = np.indices((256, 256), np.int32)
    mixed = jax.jit(module._mixed)
    for place in np.ndindex(BINS, 2):
        case = (OPERATIONS.index("Contrast"), *place)
        factor = np.float32(1 + float(signed_magnitudes()[case]))
        expected = np.clip(other.astype(np.float32) + factor * (own - other).astype(np.float32), 0, 255)
        assert expected.dtype == np.float32
        np.testing.assert_array_equal(mixed(other, own, module._factors()[case]), expected.astype(np.uint8))


def test_draws_are_uniform() -> None:
    operations, bins, negative = (np.asarray(draws) for draws in jax.jit(draw)(keys_of(0, SEVERAL)))
    counts = np.zeros((len(OPERATIONS), BINS, 2))
    np.add.at(counts, (operations, bins, negative.astype(int)), 1)
    # Each draw alone, each pair, and all three; p = 0.0001.
    for others in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        found = counts.sum(others)
        even = SEVERAL / found.size
        assert ((found - even) ** 2 / even).sum() < stats.chi2.isf(1e-4, found.size - 1)


def test_images_are_augmented_as_drawn_from_their_keys() -> None:
    keys, images, result = augmented()
    assert result.dtype == np.uint8
    assert result.shape == images.shape
    drawn = jax.jit(draw)(keys)
    assert len(np.unique(drawn[0])) == len(OPERATIONS)
    np.testing.assert_array_equal(result, jax.jit(apply)(images, *drawn))


def test_images_depend_on_their_own_keys_only() -> None:
    keys, images, whole = augmented()
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(jax.jit(trivial_augment)(keys[order], images[order]), whole[order])
    for first in range(0, 160, 16):
        part = slice(first, first + 16)
        np.testing.assert_array_equal(jax.jit(trivial_augment)(keys[part], images[part]), whole[part])


@pytest.mark.slow
def test_it_runs_in_a_mapped_step() -> None:
    _, images, whole = (array[:16] for array in augmented())

    def step(key: jax.Array, images: jax.Array) -> jax.Array:
        return trivial_augment(image_keys(key, len(images), AXIS), images)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (AXIS,))
    everywhere, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS)
    sharded = jax.shard_map(step, mesh=mesh, in_specs=(everywhere, split), out_specs=split)
    np.testing.assert_array_equal(jax.jit(sharded)(jax.random.key(1), images), whole)
    mapped = jax.vmap(partial(step, jax.random.key(1)), axis_name=AXIS)
    shards = images.reshape(2, 8, *images.shape[1:])
    np.testing.assert_array_equal(jax.jit(mapped)(shards).reshape(whole.shape), whole)
