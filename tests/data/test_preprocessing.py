"""Preprocessing yields torchvision's pixels for every kind of image."""

import hashlib
import importlib.resources
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError


@cache
def references() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "references" / "preprocessing.npz") as file:
        return dict(file)


@cache
def cases() -> dict[str, Any]:
    return json.loads(str(references()["cases"]))


@cache
def photo(name: str) -> bytes:
    return (importlib.resources.files("sklearn.datasets.images") / name).read_bytes()


def image_of(name: str) -> Image.Image:
    file, part = cases()["images"][name]
    image = Image.open(io.BytesIO(photo(file))).convert("RGB")
    if part is None:
        return image
    top, left, height, width = part
    return image.crop((left, top, left + width, top + height))


def file_of(name: str) -> bytes:
    """The photo's JPEG file, or a PNG of a region of it."""
    file, part = cases()["images"][name]
    if part is None:
        return photo(file)
    content = io.BytesIO()
    image_of(name).save(content, "png")
    return content.getvalue()


def preset(case: dict[str, Any]) -> Preprocessing:
    mean, std = tuple(case["mean"]), tuple(case["std"])
    return Preprocessing(case["crop_size"], case["resize_size"], mean, std, case["interpolation"])


def sampled(pixels: np.ndarray, kind: str) -> np.ndarray:
    """The reference pixels of an image."""
    stride, corner = cases()["stride"], cases()["corner"]
    if kind == "strided":
        return pixels[::stride, ::stride]
    return pixels if kind == "all" else np.stack([pixels[:corner, :corner], pixels[-corner:, -corner:]])


def stored(part: str, name: str) -> dict[str, np.ndarray]:
    prefix = f"{part}/{name}/"
    found = {key.removeprefix(prefix): value for key, value in references().items() if key.startswith(prefix)}
    assert found
    return found


def named(part: str) -> list[str]:
    return sorted(
        {key.removeprefix(f"{part}/").rsplit("/", 1)[0] for key in references() if key.startswith(f"{part}/")}
    )


def differences(pixels: np.ndarray, expected: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(
        [np.abs(sampled(pixels, kind).astype(int) - array).ravel() for kind, array in expected.items()]
    )


def test_the_references_were_made_from_these_photos() -> None:
    for name, digest in cases()["photos"].items():
        assert hashlib.sha256(photo(name)).hexdigest() == digest, name


@pytest.mark.parametrize("name", cases()["presets"])
def test_pixels_equal_those_of_torchvisions_preset(name: str) -> None:
    case = cases()["presets"][name]
    preprocessing, image = preset(case), image_of(case["image"])
    pixels = preprocessing.pixels(image)
    assert (pixels.shape, pixels.dtype) == ((case["crop_size"], case["crop_size"], 3), np.uint8)
    error = differences(pixels, stored("preset", name))
    assert error.max() <= 1
    # Pillow's single-precision box causes small differences, most where an output pixel lies between two levels.
    assert (error > 0).mean() < (0.03 if case["image"] == "tall" else 0.02)
    np.testing.assert_array_equal(preprocessing.pixels(np.asarray(image)), pixels)
    # simplejpeg, not Pillow, decodes the JPEG files.
    np.testing.assert_array_equal(preprocessing.pixels(file_of(case["image"])), pixels)


@pytest.mark.parametrize("name", named("tensor"))
def test_pixels_are_close_to_torchvisions_from_tensors(name: str) -> None:
    case = cases()["presets"][name]
    error = differences(preset(case).pixels(image_of(case["image"])), stored("tensor", name))
    assert error.max() <= 1


def test_normalised_values_equal_torchvisions() -> None:
    for name in named("normalised"):
        normalise = jax.jit(preset(cases()["presets"][name]).normalise)
        pixels = stored("preset", name)
        for kind, expected in stored("normalised", name).items():
            actual = normalise(pixels[kind])
            assert actual.dtype == jnp.float32
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
            # Augmentation returns floats.
            np.testing.assert_array_equal(normalise(pixels[kind].astype(np.float32)), actual)


def test_normalise_returns_the_requested_dtype() -> None:
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    preprocessing = Preprocessing(16, 16, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    expected = (np.asarray(levels) / 255.0 - np.array([0.5, 0.4, 0.3])) / np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(preprocessing.normalise(levels), expected, rtol=0, atol=2e-6)
    half = preprocessing.normalise(levels, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    # The result is rounded once, at the end.
    np.testing.assert_array_equal(half, preprocessing.normalise(levels).astype(jnp.bfloat16))
    with jax.enable_x64(True):
        double = preprocessing.normalise(levels, jnp.float64)
    np.testing.assert_allclose(double, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (31, 33), (700, 699)])
@pytest.mark.parametrize(("crop", "resize"), [(1, 1), (32, 32), (31, 32), (7, 224)])
def test_any_size_becomes_a_central_square(size: tuple[int, int], crop: int, resize: int) -> None:
    across, down = (np.linspace(0, 255, side) if side > 1 else np.full(1, 127.5) for side in size)
    pixels = np.stack(np.broadcast_arrays(across[None, :], down[:, None], 90.0), axis=-1).round().astype(np.uint8)
    result = Preprocessing(crop, resize).pixels(pixels)
    assert (result.shape, result.dtype) == ((crop, crop, 3), np.uint8)
    # The centre of a ramp stays in the centre, up to half an output pixel.
    step = 255 * min(size) / np.array(size) / resize
    np.testing.assert_allclose(result.mean((0, 1)), [127.5, 127.5, 90], atol=0.5 * step.max() + 1)
    np.testing.assert_array_equal(result[..., 2], 90)


def test_invalid_sizes_are_refused() -> None:
    for crop, resize in ((0, 4), (5, 4), (-1, 4)):
        with pytest.raises(InputError, match=f"crop_size={crop}, resize_size={resize}"):
            Preprocessing(crop, resize)
    with pytest.raises(InputError, match="unknown interpolation 'nearest'; expected bilinear or bicubic"):
        Preprocessing(4, 4, interpolation="nearest")


def test_images_that_are_not_rgb_are_converted() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(grey[..., None], 3, axis=-1)
    preprocessing = Preprocessing(16, 16)
    for image in (Image.fromarray(grey), grey, grey[..., None], Image.fromarray(expected).convert("RGBA")):
        np.testing.assert_array_equal(preprocessing.pixels(image), expected)
    with pytest.raises(InputError, match=r"pixels are float32 .* expected uint8"):
        preprocessing.pixels(grey.astype(np.float32))
    with pytest.raises(InputError, match="empty file"):
        preprocessing.pixels(b"")


def test_a_pil_image_and_its_file_have_equal_pixels() -> None:
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "half transparent": Image.fromarray(random.integers(0, 256, (9, 12, 4), np.uint8)),
        "16 bits": Image.fromarray(random.integers(0, 65536, (9, 12), np.uint16)),
        "turned": Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)),
    }
    for name, image in images.items():
        file = io.BytesIO()
        image.save(file, "PNG", **({"exif": exif} if name == "turned" else {}))
        expected = Preprocessing(8, 9).pixels(file.getvalue())
        np.testing.assert_array_equal(Preprocessing(8, 9).pixels(Image.open(file)), expected, name)
