"""Preprocessing: resizes and crops images to uint8 squares on the host, and normalises them on the device."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from jaxnets.data.decoding import open_image, pixels_of, size_of
from jaxnets.data.jpeg import Jpeg
from jaxnets.data.resizing import resize
from jaxnets.data.sources import PHOTO_MEAN, PHOTO_STD, Channels
from jaxnets.errors import InputError

_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Picture = Image.Image | np.ndarray | bytes
# Input pixels on either side that an output pixel depends on at a scale of 1: two for bicubic interpolation, plus one.
_REACH = 3


@dataclass(frozen=True)
class Preprocessing:
    """Resizes the short side to `resize_size`, crops the central square of `crop_size` and normalises.

    Resizing is antialiased, with bilinear or bicubic interpolation. `mean` and `std` are per channel, for values from
    0 to 1. The pixels match torchvision's ImageClassification preset on PIL images, under Pillow 13, within 1 grey
    level. Evaluation and prediction use the same preprocessing, which is stored with the weights. Raises InputError for
    invalid values.
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
        if not (np.isfinite([*self.mean, *self.std]).all() and min(self.std) > 0):
            raise InputError(f"mean={self.mean}, std={self.std}; expected finite numbers, and std above 0")
        if self.interpolation not in _INTERPOLATIONS:
            raise InputError(f"unknown interpolation {self.interpolation!r}; expected {' or '.join(_INTERPOLATIONS)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Builds a preprocessing from the result of `dataclasses.asdict`, which may have been stored as JSON."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def __call__(self, image: Picture, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Returns normalised floats [crop_size, crop_size, 3]. Raises InputError as `pixels` does."""
        mean, std = (np.asarray(channels, dtype) for channels in (self.mean, self.std))
        return (self.pixels(image) / np.asarray(255, dtype) - mean) / std

    def pixels(self, image: Picture) -> np.ndarray:
        """Resizes and crops an image to uint8 pixels [crop_size, crop_size, 3].

        The image is a PIL image, uint8 pixels [H, W], [H, W, 1] or [H, W, 3], or the bytes of an image file. Raises
        InputError with the reason for an unreadable image.
        """
        opened = open_image(image)
        height, width = size_of(opened)
        new_width, new_height = resized(width, height, self.resize_size)
        return self._crop(opened, round((new_width - self.crop_size) / 2.0), round((new_height - self.crop_size) / 2.0))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `pixels`."""
        return self.crop_size, self.crop_size, 3

    def _crop(self, image: Jpeg | np.ndarray, left: int, top: int) -> np.ndarray:
        """The square of `crop_size` of the resized image at a place, in pixels."""
        height, width = size_of(image)
        new_width, new_height = resized(width, height, self.resize_size)
        size, across, down = self.crop_size, width / new_width, height / new_height
        # Only the pixels that the crop depends on; all lower rows, so that damage in them is found.
        above, before = (
            max(0, int(at * scale - _REACH * max(1.0, scale))) for at, scale in ((top, down), (left, across))
        )
        after = min(width, int((left + size) * across + _REACH * max(1.0, across)) + 1)
        pixels = pixels_of(image, (above, before, height - above, after - before))
        box = (top * down - above, left * across - before, size * down, size * across)
        # Pillow 13, which torchvision calls, shrinks the height first if it is more than twice the width.
        columns_first = height > 2 * width and new_height < height
        return resize(pixels, box, size, _INTERPOLATIONS[self.interpolation], columns_first=columns_first)

    def normalise(self, images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Normalises images [..., 3] on the device: uint8, or floats from 0 to 255.

        Computes in float32 or higher precision and returns `dtype`.
        """
        precise = jnp.promote_types(dtype, jnp.float32)
        mean, std = (255 * jnp.asarray(channels, precise) for channels in (self.mean, self.std))
        return ((images.astype(precise) - mean) / std).astype(dtype)


@dataclass(frozen=True)
class FiveCrops(Preprocessing):
    """A preprocessing whose `pixels` are five crops: top left, top right, bottom left, bottom right and the centre.

    They are those of torchvision's FiveCrop on the resized image.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        return 5, *super().shape

    def pixels(self, image: Picture) -> np.ndarray:
        """Five crops [5, crop_size, crop_size, 3] of the resized image. Raises InputError as the central crop does."""
        pixels = pixels_of(open_image(image))
        resized_size = resized(pixels.shape[1], pixels.shape[0], self.resize_size)
        right, bottom = (side - self.crop_size for side in resized_size)
        places = ((0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2.0), round(bottom / 2.0)))
        return np.stack([self._crop(pixels, left, top) for left, top in places])


@dataclass(frozen=True)
class NoPreprocessing(Preprocessing):
    """A preprocessing that changes nothing, for inputs such as features."""

    crop_size: int = 1
    resize_size: int = 1

    def normalise(self, images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        return images.astype(dtype)


def resized(width: int, height: int, short: int) -> tuple[int, int]:
    """Scales width and height to a short side of `short` pixels. The long side is rounded down, as in torchvision."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short
