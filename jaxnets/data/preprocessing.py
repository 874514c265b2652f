"""From an image of any size to what a network reads: uint8 squares on the host, normalised floats on the device."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from jaxnets.data.decoding import open_image, pixels_of, upright_rgb
from jaxnets.data.sources import PHOTO_MEAN, PHOTO_STD, Channels
from jaxnets.errors import InputError

_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Picture = Image.Image | np.ndarray | bytes
# Rows either side that a row of the result may depend on, at a scale of 1: of bicubic interpolation, and one to spare.
_REACH = 3


@dataclass(frozen=True)
class Preprocessing:
    """The short side resized to `resize_size` (antialiased), the square of `crop_size` at the centre, normalised.

    `mean` and `std` are in units of the full range (0 to 1); interpolation is bilinear or bicubic. The pixels are those
    of torchvision's ImageClassification preset on PIL images, within 1 grey level. The same value serves evaluation and
    prediction, and is stored with the weights that were trained for it. Raises InputError for sizes that can't be.
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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The value of which `dataclasses.asdict`, or JSON of that, is given."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def __call__(self, image: Picture, dtype: DTypeLike = np.float32) -> np.ndarray:
        """What a network reads of an image: normalised floats [crop_size, crop_size, 3]; InputError as of `pixels`."""
        mean, std = (np.asarray(channels, dtype) for channels in (self.mean, self.std))
        return (self.pixels(image) / np.asarray(255, dtype) - mean) / std

    def pixels(self, image: Picture) -> np.ndarray:
        """uint8 [crop_size, crop_size, 3] of a PIL image, uint8 pixels [H, W(, 1 or 3)], or the bytes of an image file.

        Raises InputError, giving the reason, for an image that can't be read.
        """
        if not isinstance(image, Image.Image):
            image = Image.fromarray(pixels_of(open_image(image)))
        else:
            image = upright_rgb(image)
        width, height = image.size
        new_width, new_height = resized(width, height, self.resize_size)
        # Only what the crop keeps is computed, with the coefficients that resizing the whole would use. Width before
        # height: left to itself, Pillow 13 takes the sides of tall images in the other order, and rounds in between.
        size, filter_ = self.crop_size, _INTERPOLATIONS[self.interpolation]
        left, top = (round((side - size) / 2.0) for side in (new_width, new_height))
        across, down = width / new_width, height / new_height
        reach = _REACH * max(1.0, down)
        first, last = max(0, int(top * down - reach)), min(height, int((top + size) * down + reach) + 1)
        rows = image.crop((0, first, width, last))
        rows = rows.resize((size, rows.height), filter_, box=(left * across, 0, (left + size) * across, rows.height))
        return np.asarray(
            rows.resize((size, size), filter_, box=(0, top * down - first, size, (top + size) * down - first))
        )

    def normalise(self, images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Normalised floats from uint8 images, or floats from 0 to 255; shapes [..., 3], on the device.

        Computed in float32 at least.
        """
        precise = jnp.promote_types(dtype, jnp.float32)
        mean, std = (255 * jnp.asarray(channels, precise) for channels in (self.mean, self.std))
        return ((images.astype(precise) - mean) / std).astype(dtype)


@dataclass(frozen=True)
class AsTheyAre(Preprocessing):
    """Stands where a `Preprocessing` does if there is nothing left to do, as with features."""

    crop_size: int = 1
    resize_size: int = 1

    def normalise(self, images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        return images.astype(dtype)


def resized(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height when the short side becomes `short` pixels, the long one rounded down as torchvision does."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short
