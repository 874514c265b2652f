"""From files and arrays to what a network reads."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxnets.data.augmentation import random_shift
from jaxnets.data.preprocessing import Preprocessing, read_image
from jaxnets.errors import InputError

PREPROCESSING = Preprocessing(32, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


@pytest.mark.parametrize("size", [(8, 8), (100, 60), (31, 200), (1, 1), (32, 33)])
def test_any_size_becomes_a_square_of_the_centre(size: tuple[int, int]) -> None:
    # A ramp along the long side: after resizing and cropping, its middle is in the middle.
    width, height = size
    ramp = np.linspace(0, 255, width)[None, :] + np.zeros((height, 1))
    pixels = PREPROCESSING(np.repeat(ramp[..., None], 3, axis=-1).astype(np.uint8))
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    if width > 1:
        centre = pixels[:, 15:17].mean()
        assert abs(centre - 127) < 10
        span = float(pixels[:, -1].mean()) - float(pixels[:, 0].mean())
        assert span == pytest.approx(255 * min(size) / width, rel=0.15)


def test_normalise_is_the_formula() -> None:
    images = np.arange(256 * 3, dtype=np.uint32).reshape(1, 16, 16, 3).astype(np.uint8)
    expected = (images / 255.0 - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
    np.testing.assert_allclose(PREPROCESSING.normalise(jnp.asarray(images)), expected, atol=1e-5)


def test_read_image_turns_as_exif_says(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "turned.png", exif=exif)
    turned = np.asarray(read_image(tmp_path / "turned.png"))[..., 0]
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_read_image_understands_every_common_mode(mode: str, tmp_path: Path) -> None:
    # A half black, half white image says the same in every mode.
    black = np.zeros((4, 8), np.uint8)
    black[:, 4:] = 255
    if mode == "I;16":
        image = Image.fromarray(black.astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        # The white half is transparent black.
        layers = [np.zeros_like(black)] * (len(mode) - 1)
        image = Image.fromarray(np.stack([*layers, 255 - black], axis=-1))
    else:
        image = Image.fromarray(black).convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = read_image(path)
    assert actual.mode == "RGB"
    np.testing.assert_allclose(np.asarray(actual), np.repeat(black[..., None], 3, axis=-1), atol=2)


def test_read_image_refuses_pixels_without_a_range(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match="floating-point"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_read_image_names_what_it_cannot_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png: not an image"):
        read_image(path)
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="not an image"):
        read_image(tmp_path)


def test_random_shift_moves_each_image_whole() -> None:
    images = jnp.zeros((200, 9, 9, 3), jnp.uint8).at[:, 4, 4].set(jnp.array([1, 2, 3], jnp.uint8))
    shifted = np.asarray(random_shift(jax.random.key(0), images, 2))
    places = np.argwhere(shifted[..., 0] == 1)
    assert len(places) == 200
    np.testing.assert_array_equal(shifted[tuple(places.T)], np.tile([1, 2, 3], (200, 1)))
    moves = {(int(row) - 4, int(column) - 4) for _, row, column in places}
    assert moves == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}
