"""Decodes JPEG files with simplejpeg: only the rows down to a region, and at a reduced size if asked for."""

import re
import threading
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg

from jaxnets.data.orientation import orientation_of
from jaxnets.errors import InputError

# Pillow's limits: it warns above half of this number, and raises above it.
_MAX_PIXELS = 2 * 89_478_485
# Rows below a region that its last row of blocks and chroma upsampling may need.
_MARGIN = 16
# Segments that the header parser skips: tables, application data, comments.
_SKIPPED = frozenset((0xC4, 0xDB, *range(0xE0, 0xF0), 0xFE))
# Markers without a segment: TEM and the restart markers.
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_FILL_BYTES = re.compile(rb"\xff+")
# libjpeg's warning about bytes between the last block and the end marker: rows that were skipped on purpose, or bytes
# that belong to nothing. libjpeg reports its first warning only, and this one comes after all blocks.
_AT_THE_END = re.compile(r"extraneous bytes before marker 0xd9$")
# Warnings about the header, which do not affect the pixels, but hide the warnings after them.
_IN_THE_HEADER = re.compile(
    r"extraneous bytes before marker 0x(?:c[0124]|da|db|dd|e.|fe)$|unknown JFIF revision"
    r"|Unknown Adobe color transform|Invalid SOS parameters"
)
_STRAY = "damage in the header that does not affect the pixels"
_DAMAGE = re.compile("Corrupt JPEG data|Premature end|Inconsistent progression")
# The sampling factors of Y, Cb and Cr that the TurboJPEG API of libjpeg-turbo supports.
_SAMPLINGS = frozenset(bytes((luma, 0x11, 0x11)) for luma in (0x11, 0x12, 0x14, 0x21, 0x22, 0x41))
_SCRATCH_BYTES = 16 << 20
_scratch = threading.local()


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A grey or colour JPEG file with 8 bits per channel. If `can_stop`, decoding may end at any row.

    `blemish` describes damage of the header.
    """

    data: bytes
    stored_height: int
    stored_width: int
    height_offset: int
    orientation: int
    can_stop: bool
    blemish: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        size = (self.stored_height, self.stored_width)
        return size[::-1] if self.orientation > 4 else size


def parse_jpeg(data: bytes) -> Jpeg | None:
    """Parses a JPEG's header (ITU-T T.81, annex B). Returns None if simplejpeg can't decode the file."""
    if data[:2] != b"\xff\xd8":
        return None
    jpeg = _parse_header(data)
    if jpeg is None and (mended := _with_mended_header(data)) and (jpeg := _parse_header(mended)):
        return replace(jpeg, blemish=_STRAY)
    return jpeg


def decode_jpeg(jpeg: Jpeg, rows: int, reduction: int) -> tuple[np.ndarray, str]:
    """Returns the pixels as stored, uint8 [H, W, 3], and the blemish of the file, which is empty if there is none.

    At least the upper `rows` are valid. The size is divided by `reduction`, which is 1, 2, 4 or 8. The pixels are valid
    until the thread's next call. Raises InputError with the reason if pixels are missing or damaged.
    """
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
        reason = str(error)
        if _AT_THE_END.search(reason):
            return pixels, jpeg.blemish if height < jpeg.stored_height else reason
        if height < jpeg.stored_height:
            return decode_jpeg(replace(jpeg, can_stop=False), rows, reduction)
        mended = _with_mended_header(jpeg.data) if _IN_THE_HEADER.search(reason) and not jpeg.blemish else None
        jpeg_without = _parse_header(mended) if mended else None
        if jpeg_without is None:
            raise InputError(f"damaged JPEG ({reason})") from None
        return decode_jpeg(replace(jpeg_without, blemish=reason), rows, reduction)
    return pixels, jpeg.blemish


def check_samples(data: bytes, colorspace: str) -> str:
    """Returns the blemish of a JPEG that another library decoded without checks; empty if there is none.

    Raises InputError with the reason if pixels are missing or damaged. Files that simplejpeg can't decode pass.
    """
    mended = _with_mended_header(data) or data
    try:
        simplejpeg.decode_jpeg(mended, colorspace, min_factor=8)
    except ValueError as error:
        if _AT_THE_END.search(str(error)):
            return str(error)
        if _DAMAGE.search(str(error)):
            raise InputError(f"damaged JPEG ({error})") from None
    return "" if mended == data else _STRAY


def check_size(height: int, width: int) -> None:
    """Raises InputError for more pixels than Pillow accepts."""
    if height * width > _MAX_PIXELS:
        raise InputError(f"{width}x{height} pixels; expected at most {_MAX_PIXELS / 1e6:.0f} million")


def _buffer(shape: tuple[int, int, int]) -> np.ndarray:
    # Allocating new memory for each image slows decoding down.
    size = shape[0] * shape[1] * shape[2]
    if size > _SCRATCH_BYTES:
        return np.empty(shape, np.uint8)
    if not hasattr(_scratch, "pixels"):
        _scratch.pixels = np.empty(_SCRATCH_BYTES, np.uint8)
    return _scratch.pixels[:size].reshape(shape)


def _parse_header(data: bytes) -> Jpeg | None:
    position, orientation, restarts, frame = 2, 0, False, 0
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return _jpeg(data, frame, orientation or 1, restarts) if frame else None
        if marker in (0xC0, 0xC1, 0xC2):
            frame = position
        elif marker == 0xE1 and not orientation and data[position + 4 : position + 10] == b"Exif\0\0":
            # The first EXIF segment counts, as in Pillow, torchvision and libvips.
            orientation = orientation_of(data[position + 4 : position + 2 + length])
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
    check_size(height, width)
    can_stop = data[frame + 1] != 0xC2 and not restarts
    return Jpeg(data, height, width, frame + 5, orientation, can_stop)


def _with_mended_header(data: bytes) -> bytes | None:
    """Returns the file without what libjpeg warns about in the header and then ignores; None if there is no scan.

    These are bytes between segments, an unknown JFIF revision or Adobe transform, and wrong parameters of the scan.
    """
    segments, position, sequential, adobe, components = [bytearray(data[:2])], 2, False, bytearray(16), 0
    while found := _MARKER.search(data, position):
        marker, start = found[1][0], found.end() - 2
        position = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        segment = bytearray(data[start:position])
        segments += [bytearray(data[found.start() : start]), segment]
        if marker in _BARE:
            position = found.end()
            segments.pop()
        elif marker in (0xD8, 0xD9):
            return None
        elif marker in (0xC0, 0xC1, 0xC2) and len(segment) > 9:
            sequential, components = marker != 0xC2, segment[9]
        elif marker == 0xE0 and segment[4:9] == b"JFIF\0" and len(segment) > 9:
            segment[9] = 1
        elif marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) > 15:
            adobe = segment
        elif marker == 0xDA:
            if sequential:
                segment[-3:] = b"\0\x3f\0"
            if adobe[15] not in (0, 2 if components == 4 else 1):
                adobe[15] = 2 if components == 4 else 1
            return b"".join((*segments, data[position:]))
    return None
