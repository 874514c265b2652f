"""Decodes image files to upright uint8 RGB pixels. Of a JPEG, only the requested region is decoded."""

import io
import re
import threading
import warnings
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from jaxnets.errors import InputError

# Pillow's limits: it warns above half of this number, and raises above it.
_MAX_PIXELS = 2 * 89_478_485
# The inverse DCT can decode an 8x8 block to 1x1, 2x2 or 4x4 pixels, which is faster than decoding all of it.
_REDUCTIONS = (8, 4, 2)
# Rows below a region that its last row of blocks and chroma upsampling may need.
_MARGIN = 16
# Segments that the header parser skips: tables, application data, comments.
_SKIPPED = frozenset((0xC4, 0xDB, *range(0xE0, 0xF0), 0xFE))
_FILL_BYTES = re.compile(rb"\xff+")
# libjpeg's warning about rows that were skipped on purpose; every other warning means damage.
_UNREAD = re.compile(r"extraneous bytes before marker 0xd9$")
# The sampling factors of Y, Cb and Cr that the TurboJPEG API of libjpeg-turbo supports.
_SAMPLINGS = frozenset(bytes((luma, 0x11, 0x11)) for luma in (0x11, 0x12, 0x14, 0x21, 0x22, 0x41))
_SCRATCH_BYTES = 16 << 20
_scratch = threading.local()
# Loads all plugins now, as loading them from several threads can miss one. EPS is left out: Ghostscript would run it.
Image.init()
_FORMATS = tuple(name for name in Image.ID if name != "EPS")
# `_check_pixels` limits the size, and unusual metadata does not affect the pixels. The filters are global because
# warnings can't be filtered for one thread.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Box = tuple[int, int, int, int]
"""Top, left, height and width of a region, in pixels of the upright image."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A grey or colour JPEG file with 8 bits per channel. If `can_stop`, decoding may end at any row."""

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
    """Returns the input of `size_of` and `pixels_of`: a JPEG with a parsed header, or the pixels of any other image.

    Raises InputError with the reason if the bytes are not an image.
    """
    if isinstance(image, np.ndarray):
        return _as_rgb(image)
    jpeg = _parse_jpeg(image)
    return _decode_with_pillow(image) if jpeg is None else jpeg


def size_of(image: Jpeg | np.ndarray) -> tuple[int, int]:
    """Height and width of the upright image."""
    return image.size if isinstance(image, Jpeg) else (image.shape[0], image.shape[1])


def pixels_of(image: Jpeg | np.ndarray, box: Box | None = None, smallest: int | None = None) -> np.ndarray:
    """Returns the RGB pixels of a region, uint8 [height, width, 3]; valid until the thread's next call.

    Without `box`, the region is the whole image. With `smallest`, a JPEG is reduced by a factor of 2, 4 or 8 if both
    sides of the region keep at least `smallest` pixels.
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
    """Raises InputError with the reason if the image can't be decoded; faster than decoding it at full size."""
    opened = open_image(image)
    if isinstance(opened, Jpeg):
        _decode_jpeg(opened, opened.stored_height, _REDUCTIONS[0])


def _decode_jpeg(jpeg: Jpeg, rows: int, reduction: int) -> np.ndarray:
    data: bytes | bytearray = jpeg.data
    height = jpeg.stored_height
    # A smaller height in the header makes libjpeg stop below the region.
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
        raise InputError(f"damaged JPEG ({error})") from None
    return pixels


def _buffer(shape: tuple[int, int, int]) -> np.ndarray:
    # Allocating new memory for each image slows decoding down.
    size = shape[0] * shape[1] * shape[2]
    if size > _SCRATCH_BYTES:
        return np.empty(shape, np.uint8)
    if not hasattr(_scratch, "pixels"):
        _scratch.pixels = np.empty(_SCRATCH_BYTES, np.uint8)
    return _scratch.pixels[:size].reshape(shape)


def _parse_jpeg(data: bytes) -> Jpeg | None:
    """Parses a JPEG's header (ITU-T T.81, annex B). Returns None if simplejpeg can't decode the file."""
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
            # Any number of fill bytes may precede a marker.
            position = next(_FILL_BYTES.finditer(data, position)).end() - 1
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
    except Exception:  # Pillow raises many types for damaged metadata, which does not affect the pixels.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and flips pixels stored with an EXIF `orientation` (EXIF 2.32, section 4.6.4) to orientation 1."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode_with_pillow(data: bytes) -> np.ndarray:
    """Decodes the first frame of any image that Pillow can read, as `upright_rgb` does.

    Raises InputError with the reason for anything else.
    """
    if not data:
        raise InputError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(image.height, image.width)
            image.load()
            return np.asarray(upright_rgb(image))
    except InputError:
        raise
    except MemoryError:
        raise InputError("not enough memory for the image") from None
    except Exception as error:  # Pillow's plugins raise many types: OSError, SyntaxError, ValueError, struct.error, ...
        text = "".join(letter if letter.isprintable() else " " for letter in str(error))
        reason = " ".join(text.split()) or type(error).__name__
        if "cannot identify" in reason:
            reason = "unknown format"
        raise InputError(f"unreadable image ({reason})") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """Converts a PIL image of any mode to upright RGB. Transparency becomes white; 16 bits are scaled to 8.

    Raises InputError for 32-bit integer and floating-point pixels, which have no defined range.
    """
    file_format = image.format
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # As in `_orientation`, damaged metadata is ignored.
        image = image.copy()
    # Integers in PNG and PGM files have at most 16 bits.
    if image.mode == "F" or (image.mode == "I" and file_format not in ("PNG", "PPM")):
        pixel_type = "floating-point" if image.mode == "F" else "32-bit"
        raise InputError(f"unreadable image ({pixel_type} pixels have no defined range)")
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
    if height * width > _MAX_PIXELS:
        raise InputError(f"{width}x{height} pixels; expected at most {_MAX_PIXELS / 1e6:.0f} million")
