"""Image files -> uint8 RGB pixels, upright; of a JPEG no more than is asked for."""

import io
import re
import threading
import warnings
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from jaxnets.errors import InputError

# Twice what Pillow warns of, and what it refuses.
_MOST_PIXELS = 2 * 89_478_485
# Reducing while decoding is quick by these factors: the inverse DCT yields 4x4, 2x2 or 1x1 pixels a block (of 8x8).
_REDUCTIONS = (8, 4, 2)
# Rows below a region that chroma upsampling may look at, and that complete its last row of blocks.
_MARGIN = 16
# Segments without a part in decoding: tables, application data, comments.
_SKIPPED = frozenset((0xC4, 0xDB, *range(0xE0, 0xF0), 0xFE))
_FILLING = re.compile(rb"\xff+")
# libjpeg's word for data that it was told not to read; anything else that it complains of is damage.
_UNREAD = re.compile(r"extraneous bytes before marker 0xd9$")
# How colours lie to each other in what libjpeg-turbo's quick interface decodes: a component's blocks across and down.
_SAMPLINGS = frozenset(bytes((luma, 0x11, 0x11)) for luma in (0x11, 0x12, 0x14, 0x21, 0x22, 0x41))
_SCRATCH_BYTES = 16 << 20
_scratch = threading.local()
# All of Pillow's plugins now: threads that load them at the same time may miss one. EPS is a program, for Ghostscript.
Image.init()
_FORMATS = tuple(name for name in Image.ID if name != "EPS")
# Pillow refuses what is twice the size that it warns of, and odd metadata says nothing of the pixels. Filters can't be
# set for a single call, as they belong to all threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Box = tuple[int, int, int, int]
"""Top, left, height and width of a region, in pixels of the upright image."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG file of 8 bits, grey or colour. One that `can_stop` is read from the top and may be left at any row."""

    data: bytes
    stored_height: int
    stored_width: int
    height_offset: int
    orientation: int
    can_stop: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        size = (self.stored_height, self.stored_width)
        return size[::-1] if self.orientation > 4 else size


def open_image(image: bytes | np.ndarray) -> Jpeg | np.ndarray:
    """What `size_of` and `pixels_of` read: a JPEG with its header parsed, or all the pixels of any other image.

    Raises InputError, giving the reason, for bytes that hold no image.
    """
    if isinstance(image, np.ndarray):
        return _as_rgb(image)
    jpeg = _parse_jpeg(image)
    return _decode_with_pillow(image) if jpeg is None else jpeg


def size_of(image: Jpeg | np.ndarray) -> tuple[int, int]:
    """Height and width of the upright image."""
    return image.size if isinstance(image, Jpeg) else (image.shape[0], image.shape[1])


def pixels_of(image: Jpeg | np.ndarray, box: Box | None = None, smallest: int | None = None) -> np.ndarray:
    """RGB pixels of a region (all: None), uint8 [height, width, 3]; valid until the thread's next call.

    With `smallest`, a JPEG's pixels come reduced 2, 4 or 8 times where both sides keep at least so many.
    """
    if box is None:
        box = (0, 0, *size_of(image))
    top, left, height, width = box
    reduction = 1
    if isinstance(image, Jpeg):
        if smallest is not None:
            reduction = next((r for r in _REDUCTIONS if min(height, width) >= r * smallest), 1)
        rows = top + height if image.orientation == 1 else image.stored_height
        image = _upright(_decode_jpeg(image, rows, reduction), image.orientation)
    height, width = height // reduction, width // reduction
    top = min((top + reduction // 2) // reduction, image.shape[0] - height)
    left = min((left + reduction // 2) // reduction, image.shape[1] - width)
    return image[top : top + height, left : left + width]


def check_image(image: bytes | np.ndarray) -> None:
    """Raises InputError, giving the reason, unless the whole image can be decoded; quicker than decoding it."""
    opened = open_image(image)
    if isinstance(opened, Jpeg):
        _decode_jpeg(opened, opened.stored_height, _REDUCTIONS[0])


def _decode_jpeg(jpeg: Jpeg, rows: int, reduction: int) -> np.ndarray:
    data: bytes | bytearray = jpeg.data
    height = jpeg.stored_height
    # Say that the image ends below the region, and the rest is never looked at.
    if jpeg.can_stop and rows + _MARGIN < height:
        height = rows + _MARGIN
        data = bytearray(data)
        data[jpeg.height_offset : jpeg.height_offset + 2] = height.to_bytes(2, "big")
    shape = (-(-height // reduction), -(-jpeg.stored_width // reduction), 3)
    pixels = _buffer(shape)
    try:
        simplejpeg.decode_jpeg(data, min_height=shape[0], min_width=shape[1], min_factor=reduction, buffer=pixels)
    except ValueError as error:
        if height < jpeg.stored_height:
            if _UNREAD.search(str(error)):
                return pixels
            return _decode_jpeg(replace(jpeg, can_stop=False), rows, reduction)
        raise InputError(f"a damaged JPEG ({error})") from None
    return pixels


def _buffer(shape: tuple[int, int, int]) -> np.ndarray:
    # A fresh half megabyte from the system costs a tenth of the decoding of a photo.
    size = shape[0] * shape[1] * shape[2]
    if size > _SCRATCH_BYTES:
        return np.empty(shape, np.uint8)
    if not hasattr(_scratch, "pixels"):
        _scratch.pixels = np.empty(_SCRATCH_BYTES, np.uint8)
    return _scratch.pixels[:size].reshape(shape)


def _parse_jpeg(data: bytes) -> Jpeg | None:
    """The header of a JPEG that simplejpeg decodes, else None (ITU-T T.81, annex B)."""
    if data[:2] != b"\xff\xd8":
        return None
    position, orientation, restarts, frame = 2, 1, False, 0
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return _jpeg(data, frame, orientation, restarts) if frame else None
        if marker in (0xC0, 0xC1, 0xC2):
            frame = position
        elif marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _orientation(data[position + 4 : position + 2 + length])
        elif marker == 0xDD:
            restarts = True
        elif marker == 0xFF:
            # Any number of these may stand before a marker.
            position = next(_FILLING.finditer(data, position)).end() - 1
            continue
        elif marker not in _SKIPPED:
            return None
        position += 2 + length
    return None


def _jpeg(data: bytes, frame: int, orientation: int, restarts: bool) -> Jpeg | None:
    precision, components = data[frame + 4], data[frame + 9]
    height = int.from_bytes(data[frame + 5 : frame + 7], "big")
    width = int.from_bytes(data[frame + 7 : frame + 9], "big")
    if precision != 8 or components not in (1, 3) or not height * width:
        return None
    if components == 3 and data[frame + 11 : frame + 18 : 3] not in _SAMPLINGS:
        return None
    _check_pixels(height, width)
    can_stop = data[frame + 1] != 0xC2 and not restarts
    return Jpeg(data, height, width, frame + 5, orientation, can_stop)


def _orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # Damaged metadata, which Pillow meets with many exceptions, says nothing of the pixels.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF 2.32, section 4.6.4, tag Orientation, calls 1, from pixels stored as `orientation` says."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode_with_pillow(data: bytes) -> np.ndarray:
    """RGB pixels of any image that Pillow knows: upright, transparency on white, 16 bits scaled to 8, the first frame.

    Raises InputError, giving the reason, for anything else.
    """
    if not data:
        raise InputError("an empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(image.height, image.width)
            image.load()
            return np.asarray(upright_rgb(image))
    except InputError:
        raise
    except MemoryError:
        raise InputError("an image too large for this machine's memory") from None
    except Exception as error:  # Pillow's plugins raise many types: OSError, SyntaxError, ValueError, struct.error, ...
        text = "".join(letter if letter.isprintable() else " " for letter in str(error))
        reason = " ".join(text.split()) or type(error).__name__
        if "cannot identify" in reason:
            reason = "unknown format"
        raise InputError(f"not an image that can be read ({reason})") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode in RGB: turned as its EXIF tag says, transparency on white, 16 bits scaled to 8.

    Raises InputError for pixels of 32 bits, whole or floating-point.
    """
    stored_as = image.format
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # As for a JPEG: damaged metadata turns nothing.
        image = image.copy()
    # Of whole numbers, PNG and PGM have 16 bits at most.
    if image.mode == "F" or (image.mode == "I" and stored_as not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise InputError(f"not an image that can be read ({kind} pixels have no agreed range)")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or not pixels.size or pixels.shape[2:] not in ((), (1,), (3,)) or pixels.ndim < 2:
        raise InputError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}; expected uint8 [H, W], [H, W, 1] or [H, W, 3]"
        )
    if pixels.shape[2:] == (3,):
        return pixels
    return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=-1)


def _check_pixels(height: int, width: int) -> None:
    if height * width > _MOST_PIXELS:
        raise InputError(f"{width}x{height} pixels; at most {_MOST_PIXELS / 1e6:.0f} million are decoded")
