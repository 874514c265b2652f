"""Antialiased resizing of a box of an image. Bilinear pixels are those of Pillow within 1 grey level, but faster.

LLVM compiles it for the processor. If it fails its test, and for other filters and extreme sizes, Pillow resizes.
"""

import math
import threading
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from jaxnets.data.decoding import FloatBox
from jaxnets.data.resizing_code import SLACK, compiled

# The compiled code handles this many pairs of taps: a box is shrunk to a sixteenth.
_MOST_PAIRS = 16
# Rows of fewer pixels are shorter than a chunk of the code.
_SMALLEST_OUTPUT = 6
# The largest weight is less than 1.15 of the inverse scale, and fits into 16 bits with a sign.
_PEAK = 1.15
_WEIGHT_BITS = 15
_lock = threading.Lock()
_local = threading.local()


def resize(
    pixels: np.ndarray,
    box: FloatBox,
    size: int,
    filter: Image.Resampling = Image.Resampling.BILINEAR,
    *,
    columns_first: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resizes a box of uint8 pixels [H, W, 3] to [size, size, 3]; into `out`, which is contiguous, if it is given.

    The result depends on the box and the pixels that an antialiasing kernel reaches around it. The first pass shrinks
    rows, or columns if `columns_first`, and rounds.
    """
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    if filter != Image.Resampling.BILINEAR or columns_first or not _by_code(pixels, box, out):
        out[...] = _by_pillow(pixels, box, size, filter, columns_first)
    return out


def _by_pillow(
    pixels: np.ndarray, box: FloatBox, size: int, filter: Image.Resampling, columns_first: bool
) -> np.ndarray:
    image = Image.fromarray(pixels)
    top, left, height, width = box
    # Two calls fix the order of the two passes.
    across, down = (left, left + width), (top, top + height)
    if columns_first:
        image = image.resize((image.width, size), filter, box=(0, down[0], image.width, down[1]))
        return np.asarray(image.resize((size, size), filter, box=(across[0], 0, across[1], size)))
    image = image.resize((size, image.height), filter, box=(across[0], 0, across[1], image.height))
    return np.asarray(image.resize((size, size), filter, box=(0, down[0], size, down[1])))


def _by_code(pixels: np.ndarray, box: FloatBox, out: np.ndarray) -> bool:
    """Fills `out`, or returns False if the compiled code can't."""
    size, (height, width) = len(out), pixels.shape[:2]
    pairs_down, pairs_across = _pairs(box[2], size), _pairs(box[3], size)
    if size < _SMALLEST_OUTPUT or max(pairs_across, pairs_down) > _MOST_PAIRS:
        return False
    if width < 2 * pairs_across or height < 2 * pairs_down or not _code_works():
        return False
    if pixels.strides[1:] != (3, 1):
        pixels = np.ascontiguousarray(pixels)
    _run(pixels, box, out, pairs_across, pairs_down)
    return True


def _pairs(length: float, size: int) -> int:
    """Half of the inputs that an output depends on, rounded up."""
    return -(-math.ceil(2 * max(1.0, length / size)) // 2)


@cache
def _functions(pairs: int) -> tuple[Callable[..., None], ...]:
    with _lock:
        return compiled(pairs)


def _run(pixels: np.ndarray, box: FloatBox, out: np.ndarray, pairs_across: int, pairs_down: int) -> None:
    size, (height, width) = len(out), pixels.shape[:2]
    stride = 3 * size + SLACK
    starts, weights, bits = _axis(width, box[1], box[3], size, pairs_across)
    between = _buffer(height * stride)
    # Code may read beyond the end of a row, but not beyond the image.
    last = np.empty(3 * width + SLACK, np.uint8)
    last[: 3 * width] = pixels[-1].reshape(-1)
    shrink_rows = _functions(pairs_across)[1]
    source, target = _address(pixels), _address(between)
    tables = (size, _address(starts), _address(weights), bits)
    shrink_rows(source, pixels.strides[0], height, _address(last), target, stride, *tables)
    starts, weights, bits = _axis(height, box[0], box[2], size, pairs_down)
    shrink_columns = _functions(pairs_down)[2]
    shrink_columns(target, stride, _address(out), 3 * size, size, _address(starts), _address(weights), bits)


def _axis(inputs: int, first: float, length: float, size: int, pairs: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The first input of each output, the weights of its inputs, and the bits of a weight after the point."""
    scale = length / size
    bits = _WEIGHT_BITS + min(max(math.floor(math.log2(max(scale, 1.0) / _PEAK)), -1), 6)
    starts, weights = np.empty(size, np.int32), np.empty((size, 2 * pairs), np.int16)
    write_weights = _functions(pairs)[0]
    write_weights(_address(starts), _address(weights), inputs, size, first, scale, max(1.0, scale), 2.0**bits)
    return starts, weights, bits


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _buffer(size: int) -> np.ndarray:
    # Allocating new memory for each image takes longer than a pass.
    if not hasattr(_local, "buffer") or len(_local.buffer) < size:
        _local.buffer = np.empty(size, np.uint8)
    return _local.buffer


@cache
def _code_works() -> bool:
    """Whether the code is compiled and gives Pillow's pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    try:
        for box, size in (((1.25, 3.5, 35.5, 57.0), 31), ((0.0, 0.0, 40.0, 61.0), 8), ((9.0, 20.0, 20.0, 12.0), 25)):
            found = np.empty((size, size, 3), np.uint8)
            pairs = [_pairs(side, size) for side in box[:1:-1]]
            _run(pixels, box, found, *pairs)
            expected = _by_pillow(pixels, box, size, Image.Resampling.BILINEAR, False)
            if np.abs(found.astype(int) - expected).max() > 1:
                raise ValueError("its pixels are not those of Pillow")
    except Exception as error:
        reason = " ".join(str(error).split())
        message = (
            f"images are resized by Pillow, which is slower: compiled code failed ({type(error).__name__}: {reason})"
        )
        warnings.warn_explicit(message, UserWarning, "jaxnets", 1)
        return False
    return True
