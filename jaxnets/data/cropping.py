"""Random crops of training images. A crop depends on (seed, epoch, index) only."""

import math

import numpy as np

from jaxnets.data.decoding import Box, open_image, region_of, size_of
from jaxnets.data.hashing import GOLDEN, mix64
from jaxnets.data.resizing import resize

_TRIES = 10
_MOST_ASPECT = 4 / 3


def crop_draws(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns random numbers in [0, 1), float64 [N, 22], for the images `indices` [N] in `epochs` [N]."""
    key = mix64(np.full(len(indices), seed, np.uint64))
    for part in (epochs, indices):
        key = mix64(key ^ part.astype(np.uint64))
    counters = np.arange(1, 2 * _TRIES + 3, dtype=np.uint64) * GOLDEN
    return (mix64(key[:, None] + counters) >> np.uint64(11)) * 2.0**-53


def random_resized_crop(height: int, width: int, min_area: float, draws: np.ndarray) -> Box:
    """Returns a random box with `min_area` to 1 of the image's area and an aspect ratio of 3:4 to 4:3.

    `draws` [22] are the image's random numbers. After ten failed attempts, the box is the largest centred one with an
    allowed aspect ratio (Szegedy et al. 2014, section 6; torchvision's RandomResizedCrop).
    """
    numbers = draws.tolist()
    for area_draw, aspect_draw in zip(numbers[2::2], numbers[3::2], strict=True):
        area = height * width * (min_area + (1 - min_area) * area_draw)
        aspect = _MOST_ASPECT ** (2 * aspect_draw - 1)
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(numbers[0] * (height - box_height + 1))
            left = int(numbers[1] * (width - box_width + 1))
            return top, left, box_height, box_width
    box_width = min(width, max(1, round(height * _MOST_ASPECT)))
    box_height = min(height, max(1, round(width * _MOST_ASPECT)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def crop_into(pixels: np.ndarray, image: bytes | np.ndarray, min_area: float, draws: np.ndarray) -> None:
    """Fills `pixels`, uint8 [S, S, 3], with a random crop of an image file or of uint8 pixels.

    Resizing is antialiased and bilinear. Large JPEGs are reduced during decoding. Raises InputError with the reason for
    an unreadable image.
    """
    opened = open_image(image)
    box = random_resized_crop(*size_of(opened), min_area, draws)
    whole, (top, left, height, width) = region_of(opened, box, smallest=len(pixels))
    # Pixels outside the box do not affect the crop, except for parts of reduced pixels.
    above, before = int(top), int(left)
    region = whole[above : math.ceil(top + height), before : math.ceil(left + width)]
    resize(region, (top - above, left - before, height, width), len(pixels), out=pixels)
