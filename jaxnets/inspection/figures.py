"""Pictures of maps and filters, as arrays of uint8 pixels that any library can show or save."""

from typing import Any

import numpy as np
from PIL import Image

from jaxnets.errors import InputError

# Perceptually uniform: equal steps of a value look equal, in grey too.
COLOURS = "inferno"
_LUMA = np.array([0.299, 0.587, 0.114])


def resize_maps(maps: Any, height: int, width: int) -> np.ndarray:
    """Maps [..., h, w] at the size of an image, [..., height, width], by bilinear interpolation."""
    maps = np.asarray(maps, np.float32)
    flat = maps.reshape(-1, *maps.shape[-2:])
    resized = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in flat]
    return np.stack(resized).reshape(*maps.shape[:-2], height, width)


def coloured(values: Any, highest: float | None = None) -> np.ndarray:
    """Values [...] as colours, uint8 [..., 3]: 0 and less are dark, `highest`, by default the maximum, is bright."""
    from matplotlib import colormaps

    values = np.asarray(values, np.float64)
    highest = float(values.max(initial=0)) if highest is None else highest
    shares = np.clip(values / highest, 0, 1) if highest > 0 else np.zeros_like(values)
    return colormaps[COLOURS](shares, bytes=True)[..., :3]


def overlay(pixels: Any, heat: Any, *, strength: float = 0.6) -> np.ndarray:
    """A map [h, w] in colours on a picture, uint8 [H, W, 3], that is turned grey; the map is scaled by its maximum.

    `strength` is the share of the colours, from 0 to 1.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise InputError(f"pixels are {pixels.dtype} {list(pixels.shape)}; expected uint8 [H, W, 3]")
    heat = np.asarray(heat)
    if heat.shape != pixels.shape[:2]:
        heat = resize_maps(heat, *pixels.shape[:2])
    grey = (pixels @ _LUMA)[..., None]
    return (strength * coloured(heat) + (1 - strength) * grey).round().astype(np.uint8)


def filter_pictures(filters: Any) -> np.ndarray:
    """Filters [N, h, w, C] as pictures, uint8 [N, h, w, 3]: grey is 0, each is scaled by its largest weight.

    Filters of three channels are in colour; of others, the mean over the channels is shown in grey.
    """
    filters = np.asarray(filters, np.float64)
    if filters.shape[-1] != 3:
        filters = np.repeat(filters.mean(axis=-1, keepdims=True), 3, axis=-1)
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    return ((filters / np.where(largest > 0, largest, 1) + 1) * 127.5).round().astype(np.uint8)


def grid(pictures: Any, columns: int | None = None, *, gap: int = 1) -> np.ndarray:
    """Pictures uint8 [N, h, w, 3] in rows of `columns`, by default about as many as rows, with white gaps [pixels]."""
    pictures = np.asarray(pictures)
    count, height, width, _ = pictures.shape
    columns = int(np.ceil(count**0.5)) if columns is None else columns
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet
