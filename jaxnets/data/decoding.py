"""Decodes image files to upright uint8 RGB pixels. Of a JPEG, only the requested region is decoded."""

import numpy as np
from PIL import Image

from jaxnets.data.formats import decode_image, rgb_of
from jaxnets.data.jpeg import Jpeg, decode_jpeg, parse_jpeg
from jaxnets.data.orientation import mirrors, upright
from jaxnets.errors import InputError

# The inverse DCT can decode an 8x8 block to 1x1, 2x2 or 4x4 pixels, which is faster than decoding all of it.
_REDUCTIONS = (8, 4, 2)

Box = tuple[int, int, int, int]
"""Top, left, height and width of a region, in pixels of the upright image."""
FloatBox = tuple[float, float, float, float]


def open_image(image: bytes | np.ndarray | Image.Image) -> Jpeg | np.ndarray:
    """Returns the input of `size_of` and `pixels_of`: a JPEG with a parsed header, or the pixels of any other image.

    `image` is a file's content, uint8 pixels or a PIL image. Raises InputError with the reason if it can't be read.
    """
    if isinstance(image, np.ndarray):
        return _as_rgb(image)
    if isinstance(image, Image.Image):
        return rgb_of(image)
    return parse_jpeg(image) or decode_image(image)[0]


def size_of(image: Jpeg | np.ndarray) -> tuple[int, int]:
    """Height and width of the upright image."""
    return image.size if isinstance(image, Jpeg) else (image.shape[0], image.shape[1])


def pixels_of(image: Jpeg | np.ndarray, box: Box | None = None, smallest: int | None = None) -> np.ndarray:
    """Returns the RGB pixels of a region, uint8 [height, width, 3]; valid until the thread's next call.

    Without `box`, the region is the whole image. With `smallest`, a JPEG is reduced by a factor of 2, 4 or 8 if both
    sides of the region keep at least `smallest` pixels, and the region is rounded to reduced pixels.
    """
    box = (0, 0, *size_of(image)) if box is None else box
    pixels, reduction = _decoded(image, box, smallest)
    top, left, height, width = ((side + reduction // 2 * (number < 2)) // reduction for number, side in enumerate(box))
    return pixels[top : top + height, left : left + width]


def region_of(image: Jpeg | np.ndarray, box: Box, smallest: int) -> tuple[np.ndarray, FloatBox]:
    """Returns RGB pixels that hold a region, reduced as by `pixels_of`, and the region's exact place in them.

    The pixels below the region may be missing.
    """
    pixels, reduction = _decoded(image, box, smallest)
    top, left, height, width = box
    if isinstance(image, Jpeg):
        # The last reduced pixel may stand for fewer pixels. In a mirrored image, it is the first one.
        rows, columns = image.size
        down, across = mirrors(image.orientation)
        top, left = top + -rows % reduction * down, left + -columns % reduction * across
    return pixels, (top / reduction, left / reduction, height / reduction, width / reduction)


def _decoded(image: Jpeg | np.ndarray, box: Box, smallest: int | None) -> tuple[np.ndarray, int]:
    """Upright pixels that hold the region, and the factor by which they are reduced."""
    if not isinstance(image, Jpeg):
        return image, 1
    top, _, height, width = box
    reduction = 1
    if smallest is not None:
        reduction = next((r for r in _REDUCTIONS if min(height, width) >= r * smallest), 1)
    rows = top + height if image.orientation == 1 else image.stored_height
    return upright(decode_jpeg(image, rows, reduction)[0], image.orientation), reduction


def check_image(image: bytes | np.ndarray) -> str:
    """Returns the blemish of an image, or an empty string; faster than decoding it at full size.

    A blemish is damage with which a JPEG can still be decoded to its full size. Raises InputError with the reason if
    the image can't be decoded.
    """
    if isinstance(image, np.ndarray):
        _as_rgb(image)
        return ""
    jpeg = parse_jpeg(image)
    if jpeg is None:
        return decode_image(image)[1]
    return decode_jpeg(jpeg, jpeg.stored_height, _REDUCTIONS[0])[1]


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or not pixels.size or pixels.shape[2:] not in ((), (1,), (3,)) or pixels.ndim < 2:
        raise InputError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}; expected uint8 [H, W], [H, W, 1] or [H, W, 3]"
        )
    if pixels.shape[2:] == (3,):
        return pixels
    return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=-1)
