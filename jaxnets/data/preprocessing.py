"""From an image of any size to what a network reads: uint8 squares on the host, normalised floats on the device."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from jaxnets.data.decoding import decode_with_pillow, open_image, pixels_of
from jaxnets.data.sources import PHOTO_MEAN, PHOTO_STD, Channels
from jaxnets.errors import InputError

_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """The short side resized to `resize_size` (antialiased), the square of `crop_size` at the centre, normalised.

    `mean` and `std` are in units of the full range (0 to 1); interpolation is bilinear or bicubic. The pixels equal
    those of torchvision's ImageClassification preset on PIL images. The same value serves evaluation and prediction,
    and is stored with the weights that were trained for it. Raises InputError for sizes that no image can have.
    """

    crop_size: int
    resize_size: int
    mean: Channels = PHOTO_MEAN
    std: Channels = PHOTO_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.crop_size <= self.resize_size:
            raise InputError(
                f"crop_size={self.crop_size}, resize_size={self.resize_size}; "
                "expected 1 <= crop_size <= resize_size, in pixels"
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise InputError(f"unknown interpolation {self.interpolation!r}; expected {' or '.join(_INTERPOLATIONS)}")

    def __call__(self, image: Image.Image | np.ndarray | bytes) -> np.ndarray:
        """uint8 [crop_size, crop_size, 3] of a PIL image, of uint8 pixels [H, W, 3], or of the bytes of an image file.

        Raises InputError, giving the reason, for an image that can't be read.
        """
        if not isinstance(image, Image.Image):
            image = Image.fromarray(pixels_of(open_image(image)))
        elif image.mode != "RGB":
            image = image.convert("RGB")
        width, height = image.size
        new_width, new_height = resized(width, height, self.resize_size)
        # Only what the crop keeps is computed, with the coefficients that resizing the whole would use.
        left, top = (round((side - self.crop_size) / 2.0) for side in (new_width, new_height))
        across, down = width / new_width, height / new_height
        box = (left * across, top * down, (left + self.crop_size) * across, (top + self.crop_size) * down)
        shape = (self.crop_size, self.crop_size)
        return np.asarray(image.resize(shape, _INTERPOLATIONS[self.interpolation], box=box))

    def normalise(self, images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Normalised floats from uint8 images, or floats from 0 to 255; shapes [..., 3], on the device."""
        mean, std = (255 * jnp.asarray(channels, jnp.float32) for channels in (self.mean, self.std))
        return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def resized(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height when the short side becomes `short` pixels, the long one rounded down as torchvision does."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def read_image(path: Path) -> np.ndarray:
    """RGB pixels [H, W, 3] of an image file of any kind, upright. Raises InputError, naming the file."""
    try:
        return decode_with_pillow(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of an image") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
