"""Sliding-window arithmetic: output sizes and the shifted views of an image that a window sees."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.errors import InputError

Padding2D = Sequence[tuple[int, int]]
# Window, stride, padding, ceil mode.
Window = tuple[int, int, int, bool]


def output_size(size: int, window: int, stride: int, padding: int, ceil_mode: bool = False) -> int:
    """Pixels that a window leaves of `size`: (W - F + 2P) / S + 1, rounded down, or up in ceil mode.

    In ceil mode a last window that would start inside the right padding is dropped, as in torch.
    """
    span = size + 2 * padding - window
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def checked_output_size(size: int, window: int, stride: int, padding: int, ceil_mode: bool = False) -> int:
    """Like `output_size`, but raises InputError where no pixel would be left."""
    count = output_size(size, window, stride, padding, ceil_mode)
    if count < 1:
        raise InputError(
            f"a {window}x{window} window with stride {stride} and padding {padding} does not fit a map of {size} px; "
            "use larger images"
        )
    return count


def smallest_input(windows: Sequence[Window]) -> int:
    """The smallest size, in pixels, of which every window of a chain leaves at least one pixel."""
    size = 1
    while True:
        left = size
        for window in windows:
            left = output_size(left, *window) if left > 0 else 0
        if left > 0:
            return size
        size += 1


def live_taps(size: int, window: int, stride: int, low: int, count: int) -> range:
    """The window offsets from the first to the last that meet a real pixel; those outside only ever see padding."""
    live = [i for i in range(window) if any(0 <= o * stride + i - low < size for o in range(count))]
    return range(live[0], live[-1] + 1) if live else range(1)


def shifted_views(
    images: jax.Array,
    taps: Sequence[tuple[int, int]],
    stride: int,
    padding: Padding2D,
    count: tuple[int, int],
    fill: float,
) -> list[jax.Array]:
    """What each window offset (row, column) sees: one [N, H', W', C] view of [N, H, W, C] a tap."""
    n, _, _, channels = images.shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)), constant_values=fill)
    rows, columns = count
    return [
        lax.slice(
            padded,
            (0, i, j, 0),
            (n, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, channels),
            (1, stride, stride, 1),
        )
        for i, j in taps
    ]
