"""Decodes every image format but common JPEGs, by Pillow and its plugins."""

import contextlib
import ctypes
import io
import warnings
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, PngImagePlugin, TiffImagePlugin

from jaxnets.data.jpeg import check_samples, check_size
from jaxnets.data.orientation import orientation_of, upright
from jaxnets.errors import InputError

# Loads all plugins now, as loading them from several threads can miss one. EPS is left out: Ghostscript would run it.
Image.init()
_FORMATS = tuple(name for name in Image.ID if name != "EPS")
# `check_size` limits the size, and unusual metadata does not affect the pixels. The filters are global because
# warnings can't be filtered for one thread.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_XMP = ("XML:com.adobe.xmp", "xmp")
# Formats whose fourth byte often is unused, and 0.
_MAYBE_WITHOUT_ALPHA = ("BMP", "DIB", "TGA", "ICO", "CUR")
_RAW_STARTS = {
    b"FUJIFILMCCD-RAW": "RAF",
    b"IIRO": "ORF",
    b"IIRS": "ORF",
    b"MMOR": "ORF",
    b"IIU\0": "RW2",
    b"II\x1a\0\0\0HEAPCCDR": "CRW",
    b"FOVb": "X3F",
}
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_KNOWN_STARTS = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "BigTIFF", b"MM\0+": "BigTIFF", b"8BPS": "PSD"}
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
# TIFF tags and values (TIFF 6.0; DNG 1.7; TIFF/EP for the colour filter array).
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 258, 259, 262
_PLANAR, _SUB_IFDS, _SAMPLE_FORMAT, _DNG_VERSION = 284, 330, 339, 50706
_WHITE_IS_ZERO, _SENSOR_PHOTOMETRICS, _SEPARATE = 0, (32803, 34892), 2
_MAX_SUB_IFDS = 16


def decode_image(data: bytes) -> tuple[np.ndarray, str]:
    """Returns the first image of a file as upright RGB, uint8 [H, W, 3], and the file's blemish or an empty string.

    Raises InputError with the reason if the file can't be decoded.
    """
    if not data:
        raise InputError("empty file")
    for start, name in _RAW_STARTS.items():
        if data.startswith(start):
            raise _camera_raw(name)
    try:
        with _open(data) as image:
            check_size(image.height, image.width)
            pixels = rgb_of(image)
        if image.format in ("JPEG", "MPO"):
            return pixels, check_samples(data, "CMYK" if image.mode == "CMYK" else "RGB")
        return pixels, ""
    except InputError:
        raise
    except MemoryError:
        raise InputError("not enough memory for the image") from None
    except Exception as error:  # Pillow's plugins raise many types: OSError, SyntaxError, ValueError, struct.error, ...
        text = "".join(letter if letter.isprintable() else " " for letter in str(error))
        reason = " ".join(text.split()) or type(error).__name__
        if data.startswith(_JXL_STARTS):
            reason = "damaged JPEG XL"
        elif "cannot identify" in reason:
            kind = _KNOWN_STARTS.get(data[:4])
            reason = f"a {kind} file of a kind that Pillow can't read; save it as PNG" if kind else "unknown format"
        raise InputError(f"unreadable image ({reason})") from None


def _open(data: bytes) -> Image.Image:
    if data.startswith(_JXL_STARTS):
        try:
            import pillow_jxl  # noqa: F401  # registers its format
        except ImportError:
            raise _missing("JPEG XL", "jxl") from None
        return Image.open(io.BytesIO(data), formats=("JXL",))
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 200)
        brands = {data[start : start + 4] for start in range(8, end, 4)}
        if data[8:12] == b"crx ":
            raise _camera_raw("CR3")
        if brands & _HEIC_BRANDS:
            try:
                import pillow_heif
            except ImportError:
                raise _missing("HEIC", "heif") from None
            heif = pillow_heif.open_heif(io.BytesIO(data))
            check_size(*heif.size[::-1])
            return heif.to_pillow()
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def rgb_of(image: Image.Image) -> np.ndarray:
    """Returns a PIL image of any mode as upright RGB, uint8 [H, W, 3]. Transparency becomes white, 16 bits are scaled.

    Only the EXIF orientation counts, as in OpenCV, torchvision and libvips; Pillow also obeys that of XMP metadata.
    Raises InputError for pixels without a defined range (floating-point, signed and 32-bit), for a camera raw file, and
    for a file whose first image is a thumbnail.
    """
    transparency = image.info.get("transparency")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
    elif isinstance(image, PngImagePlugin.PngImageFile) and transparency is not None and image.tile:
        transparency = _scaled_transparency(transparency, str(image.tile[0].args))
    # Pillow turns a TIFF while loading it.
    hidden = {key: image.info.pop(key) for key in _XMP if key in image.info}
    try:
        image.load()
    finally:
        image.info.update(hidden)
    # A JPEG XL states its orientation elsewhere (ISO/IEC 18181-2), and its plugin applies it.
    orientation = 1 if image.format == "JXL" else orientation_of(image.info.get("exif", b""))
    return upright(_without_alpha(image, transparency), orientation)


def _without_alpha(image: Image.Image, transparency: int | bytes | tuple[int, ...] | None) -> np.ndarray:
    # Integers in PNG and PGM files have at most 16 bits.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        pixel_type = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise InputError(f"unreadable image ({pixel_type} pixels have no defined range)")
    if image.mode.startswith("I"):
        return _from_integers(image, transparency)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    if image.mode == "La":
        image = image.convert("LA")
    if transparency != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = transparency
    file_format, image = image.format, image.convert("RGBA")
    if file_format in _MAYBE_WITHOUT_ALPHA and image.getchannel("A").getextrema() == (0, 0):
        return np.asarray(image.convert("RGB"))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def _from_integers(image: Image.Image, transparency: int | bytes | tuple[int, ...] | None) -> np.ndarray:
    levels, bits, inverted = np.asarray(image), 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(_BITS, (16,))[0]
        inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    grey = (levels >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    if isinstance(transparency, int):
        grey[levels == transparency] = 255
    return np.repeat(grey[..., None], 3, axis=-1)


def _scaled_transparency(transparency: int | bytes | tuple[int, ...], raw_mode: str) -> int | bytes | tuple[int, ...]:
    """The transparent value of a PNG in the range of the pixels, for which Pillow does not scale it."""
    if raw_mode == "RGB;16B":
        raise InputError(
            "unreadable image (Pillow can't find a transparent colour of 16 bits; save the image with an alpha channel)"
        )
    if isinstance(transparency, int):
        return transparency * {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
    return transparency


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raises InputError for a camera raw file, a first image that is a thumbnail, and signed pixels."""
    tags, directories = image.tag_v2, [image.tag_v2]
    if image.fp is not None:
        image.fp.seek(0)
        header = image.fp.read(16)
        if header[8:10] == b"CR":
            raise _camera_raw("CR2")
        for offset in tags.get(_SUB_IFDS, ())[:_MAX_SUB_IFDS]:
            directories.append(TiffImagePlugin.ImageFileDirectory_v2(header if header[2] == 43 else header[:8]))
            image.fp.seek(offset)
            directories[-1].load(image.fp)
    if _DNG_VERSION in tags:
        raise _camera_raw("DNG")
    if any(directory.get(_PHOTOMETRIC) in _SENSOR_PHOTOMETRICS for directory in directories):
        raise _camera_raw()
    if tags.get(_SUBFILE, 0) & 1 and (_SUB_IFDS in tags or tags.next):
        raise InputError("unreadable image (the first image of the TIFF file is a thumbnail; save it as JPEG or PNG)")
    if tags.get(_PLANAR) == _SEPARATE and tags.get(_BITS, (8,))[0] > 8 and tags.get(_COMPRESSION, 1) == 1:
        raise InputError(
            "unreadable image (Pillow can't read an uncompressed TIFF with 16 bits in separate planes; save it as PNG)"
        )
    if 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise InputError("unreadable image (signed pixels have no defined range)")


def _camera_raw(name: str = "TIFF") -> InputError:
    return InputError(f"unreadable image (a camera raw file, {name}; convert it to JPEG, PNG or TIFF)")


def _missing(file_format: str, extra: str) -> InputError:
    return InputError(f"unreadable image ({file_format} needs a plugin: pip install 'jaxnets[{extra}]')")


def _silence_libtiff() -> None:
    """Stops libtiff from printing its errors, for which Pillow raises exceptions.

    Where Pillow contains libtiff, as on Windows, or uses the system's, nothing changes.
    """
    package = Path(PIL.__file__).parent
    for library in (*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")):
        with contextlib.suppress(OSError, AttributeError):
            set_handler = ctypes.CDLL(str(library)).TIFFSetErrorHandler
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


_silence_libtiff()
