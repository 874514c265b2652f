"""From an image of any size to what a network reads: uint8 squares on the host, normalised floats on the device."""

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
    """Resize the short side to `image_size` (bilinear, antialiased), crop the centre, normalise by `mean` and `std`.

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
        image = image.convert("RGB")
        size = self.image_size
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))

    def normalise(self, images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Normalised floats from uint8 images; shapes [..., 3], on the device."""
        mean, std = (255 * jnp.asarray(channels, jnp.float32) for channels in (self.mean, self.std))
        return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def read_image(path: Path) -> Image.Image:
    """The image in a file, turned as its EXIF tag says. Raises InputError, naming the file, if it holds none."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of an image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not an image that can be read ({error})") from None
