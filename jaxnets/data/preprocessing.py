"""From an image of any size to what a network reads: uint8 squares on the host, normalised floats on the device."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxnets.errors import InputError

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """The square at the centre, resized to `image_size` (bilinear, antialiased), normalised by `mean` and `std`.

    `mean` and `std` are in units of the full range (0 to 1). The same value serves training, evaluation and
    prediction, and is stored with the weights that were trained with it.
    """

    image_size: int
    mean: Channels
    std: Channels

    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """uint8 [image_size, image_size, 3] from a PIL image or a uint8 array [H, W, 3]."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        (width, height), side = image.size, min(image.size)
        left, top = (width - side) / 2, (height - side) / 2
        square = (left, top, left + side, top + side)
        shape = (self.image_size, self.image_size)
        return np.asarray(image.convert("RGB").resize(shape, Image.Resampling.BILINEAR, box=square))

    def normalise(self, images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Normalised floats from uint8 images; shapes [..., 3], on the device."""
        mean, std = (255 * jnp.asarray(channels, jnp.float32) for channels in (self.mean, self.std))
        return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def read_image(path: Path) -> Image.Image:
    """The image in a file in RGB, turned as its EXIF tag says, transparency on white, 16 bits scaled to 8.

    Raises InputError, naming the file, if it holds no such image.
    """
    try:
        with warnings.catch_warnings():
            # A large photo is no attack; Pillow refuses twice the size that it warns of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
        if upright.mode == "F":
            raise ValueError("floating-point pixels have no agreed range")
        if upright.mode.startswith("I"):
            return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
        return upright.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of an image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not an image that can be read ({error})") from None
