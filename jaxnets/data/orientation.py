"""The orientation of an image: read from EXIF metadata, and applied to pixels."""

import numpy as np
from PIL import ExifTags, Image


def orientation_of(segment: bytes) -> int:
    """Returns the orientation of EXIF metadata, 1 to 8. Damaged metadata means 1, as it does not affect the pixels."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many types.
        return 1
    return orientation if orientation in range(1, 9) else 1


def mirrors(orientation: int) -> tuple[bool, bool]:
    """Whether an upright image begins with the last of the stored rows or columns: down, and across."""
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and flips pixels [H, W, C] stored with `orientation` to orientation 1 (EXIF 2.32, section 4.6.4)."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    down, across = mirrors(orientation)
    if down:
        pixels = pixels[::-1]
    if across:
        pixels = pixels[:, ::-1]
    return pixels
