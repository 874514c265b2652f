"""Every kind of image file yields correct pixels or an error with a reason, and never a crash or a hang."""

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps, features

from jaxnets.data.decoding import Jpeg, check_image, open_image, pixels_of, size_of
from jaxnets.errors import InputError
from tests.tiers import slow_except

# pytest shows this warning of Pillow in spite of the filter in `jaxnets.data.decoding`.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")
HEIGHT, WIDTH = 37, 53
# Far longer than any of these small files takes.
SECONDS = 5.0


def smooth(height: int = HEIGHT, width: int = WIDTH, breadth: float = 1) -> np.ndarray:
    """Pixels without noise, whose rows, columns and channels all differ."""
    y, x = np.mgrid[:height, :width] / breadth
    waves = [np.sin(x / 9 + y / 17), np.cos(x / 13 - y / 23), np.sin(y / 11)]
    return np.stack([128 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


def photo(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    noise = np.random.default_rng(height * width).normal(0, 14, (height, width, 3))
    return (smooth(height, width) + noise).clip(0, 255).astype(np.uint8)


PIXELS = photo()
GREY = PIXELS[..., 0]
IMAGE = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255.0
    return pixels * share + 255 * (1 - share)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *between: bytes, interlace: int = 0, end: bool = True
) -> bytes:
    """Encodes rows, including their filter bytes, as a PNG file (PNG, second edition, section 11)."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    data = b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + chunk(b"IDAT", zlib.compress(rows))
    return data + chunk(b"IEND", b"") if end else data


def unfiltered(samples: np.ndarray) -> bytes:
    """The rows of a PNG, each preceded by the filter byte 0."""
    return b"".join(b"\0" + row.tobytes() for row in samples)


def interlaced() -> bytes:
    # Adam7: row and column offsets and steps of the seven passes.
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        unfiltered(np.ascontiguousarray(PIXELS[top::down, left::across])) for top, left, down, across in passes
    )
    return png(WIDTH, HEIGHT, 8, 2, rows, interlace=1)


def resized_header(data: bytes, height: int, width: int) -> bytes:
    """A JPEG or PNG whose header has a wrong size."""
    changed = bytearray(data)
    if data.startswith(b"\xff\xd8"):
        start = frame_header(data)
        changed[start + 5 : start + 9] = struct.pack(">HH", height, width)
    else:
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    return bytes(changed)


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """The marker, start and end of each segment of a JPEG header."""
    found, position = [], 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        found.append((data[position + 1], position, end))
        position = end
    return [*found, (0xDA, position, position + 2 + int.from_bytes(data[position + 2 : position + 4], "big"))]


def frame_header(data: bytes) -> int:
    return next(start for marker, start, _ in segments(data) if marker in (0xC0, 0xC2))


def without(data: bytes, marker: int) -> bytes:
    for _, start, end in reversed([part for part in segments(data) if part[0] == marker]):
        data = data[:start] + data[end:]
    return data


def patched(data: bytes, place: int, *values: int) -> bytes:
    return data[:place] + bytes(values) + data[place + len(values) :]


def after_start(data: bytes, *inserted: bytes) -> bytes:
    return data[:2] + b"".join(inserted) + data[2:]


def application(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


@cache
def jpeg() -> bytes:
    return encoded(IMAGE, quality=90)


def flat_blocks(across: int, down: int) -> tuple[bytes, np.ndarray]:
    """A baseline JPEG with `across` x `down` luma blocks to one of each chroma, all blocks flat; and its luma.

    Encoders write 3:1 and 4:1:0 rarely, so the entropy-coded data are put together here (T.81, annexes F and K).
    """
    rng = np.random.default_rng(0)
    columns, rows = 3, 2
    steps = rng.integers(-7, 8, (rows, columns, down, across))
    # Differences of up to 3 bits from block to block, in quantisation steps of 16 levels of 8x8 sums: 2 grey levels.
    bits, last, luma = "", 0, np.empty((rows * down, columns * across), np.int64)
    for row, column in np.ndindex(rows, columns):
        for y, x in np.ndindex(down, across):
            value = int(steps[row, column, y, x])
            difference, last = value - last, value
            size = abs(difference).bit_length()
            code = ("00", "010", "011", "100", "101")[size]
            number = difference if difference > 0 else difference + (1 << size) - 1
            bits += code + (format(number, f"0{size}b") if size else "") + "1010"
            luma[row * down + y, column * across + x] = value
        bits += "00" + "00" + "00" + "00"
    bits += "1" * (-len(bits) % 8)
    entropy = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    height, width = rows * down * 8, columns * across * 8
    like = encoded(Image.new("RGB", (8, 8)), subsampling="4:4:4", qtables=[[16] * 64, [16] * 64])
    like = patched(resized_header(like, height, width), frame_header(like) + 11, across << 4 | down)
    pixels = 128 + 2 * luma.repeat(8, axis=0).repeat(8, axis=1)
    return like[: segments(like)[-1][2]] + entropy + b"\xff\xd9", pixels


def ycck() -> tuple[bytes, np.ndarray]:
    """A CMYK JPEG whose Adobe marker is changed to YCCK, and its colours by the formulas."""
    cmyk = encoded(IMAGE.convert("CMYK"), quality=95)
    stored = 255.0 - np.asarray(Image.open(io.BytesIO(cmyk)))
    y, cb, cr, black = np.moveaxis(stored, -1, 0)
    cb, cr = cb - 128, cr - 128
    inks = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1).clip(0, 255)
    data = patched(cmyk, cmyk.index(b"Adobe") + 11, 2)
    return data, (255 - inks) * black[..., None] / 255


# Name -> file, the expected pixels from an independent source, and the tolerance.
Valid = tuple[bytes, np.ndarray, float]


@cache
def valid() -> dict[str, Valid]:
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    holes = np.where(alpha > 100, 255, 0).astype(np.uint8)
    dark = GREY > 120
    wide = GREY.astype(np.uint16) * 256 + 77
    palette = IMAGE.quantize(16)
    palette_pixels = np.asarray(palette.convert("RGB"))
    index = int(np.asarray(palette)[0, 0])
    clear = np.where(np.asarray(palette) == index, 0, 255)
    key = tuple(int(value) for value in PIXELS[5, 5])
    keyed = np.where((key == PIXELS).all(axis=-1), 0, 255)
    wide_rgb = np.stack([PIXELS, 255 - PIXELS], axis=-1)  # high bytes, then low ones
    others = [Image.fromarray(255 - PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    thin = np.arange(5000, dtype=np.uint32).astype(np.uint8)[None]
    turned = np.ascontiguousarray(np.rot90(PIXELS, -1))
    half = (PIXELS // 2).copy()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    thumbnail = encoded(Image.new("RGB", (16, 16), "red"))
    plain = by_pillow(jpeg())
    exif_and_thumbnail = application(0xE1, oriented(1) + thumbnail)
    exact: dict[str, tuple[bytes, np.ndarray]] = {
        "PNG": (encoded(IMAGE, "PNG"), PIXELS),
        "PNG, grey": (encoded(Image.fromarray(GREY), "PNG"), as_rgb(GREY)),
        "PNG, 1 bit": (encoded(Image.fromarray(dark), "PNG"), as_rgb(dark * np.uint8(255))),
        "PNG, palette": (encoded(palette, "PNG"), palette_pixels),
        "PNG, palette with a clear colour": (
            encoded(palette, "PNG", transparency=index),
            on_white(palette_pixels, clear),
        ),
        "PNG, a clear colour": (encoded(IMAGE, "PNG", transparency=key), on_white(PIXELS, keyed)),
        "PNG, grey and alpha": (
            encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(holes)]), "PNG"),
            on_white(as_rgb(GREY), holes),
        ),
        "PNG, 16-bit grey": (encoded(Image.fromarray(wide), "PNG"), as_rgb(GREY)),
        "PNG, 16-bit RGB": (png(WIDTH, HEIGHT, 16, 2, unfiltered(wide_rgb)), PIXELS),
        "PNG, interlaced": (interlaced(), PIXELS),
        "PNG, turned": (encoded(IMAGE, "PNG", exif=oriented(6)), turned),
        "PNG, animated": (encoded(IMAGE, "PNG", save_all=True, append_images=others), PIXELS),
        "PNG, a colour profile": (encoded(IMAGE, "PNG", icc_profile=profile), PIXELS),
        "PNG, a wrong checksum of right pixels": (
            encoded(IMAGE, "PNG")[:-16] + b"\0\0\0\0" + chunk(b"IEND", b""),
            PIXELS,
        ),
        "PNG, junk at the end": (encoded(IMAGE, "PNG") + b"junk", PIXELS),
        "PNG, 1x1": (encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), np.array([[[1, 2, 3]]])),
        "PNG, 5000x1": (encoded(Image.fromarray(thin), "PNG"), as_rgb(thin)),
        "GIF": (encoded(palette, "GIF"), palette_pixels),
        "GIF, animated": (
            encoded(palette, "GIF", save_all=True, append_images=[other.quantize(16) for other in others]),
            palette_pixels,
        ),
        "GIF, a clear colour": (encoded(palette, "GIF", transparency=index), on_white(palette_pixels, clear)),
        "BMP": (encoded(IMAGE, "BMP"), PIXELS),
        "TIFF": (encoded(IMAGE, "TIFF"), PIXELS),
        "TIFF, LZW": (encoded(IMAGE, "TIFF", compression="tiff_lzw"), PIXELS),
        "TIFF, 16-bit grey": (encoded(Image.fromarray(wide), "TIFF"), as_rgb(GREY)),
        "TIFF, turned": (encoded(IMAGE, "TIFF", exif=oriented(6)), turned),
        "TIFF, several pages": (encoded(IMAGE, "TIFF", save_all=True, append_images=others), PIXELS),
        "PPM": (encoded(IMAGE, "PPM"), PIXELS),
        "PGM, 16-bit": (b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + wide.astype(">u2").tobytes(), as_rgb(GREY)),
        "TGA": (encoded(IMAGE, "TGA"), PIXELS),
        "WebP, lossless": (encoded(IMAGE, "WEBP", lossless=True), PIXELS),
        "WebP, animated": (
            encoded(IMAGE, "WEBP", save_all=True, append_images=others, lossless=True),
            PIXELS,
        ),
        "JPEG": (jpeg(), plain),
        "JPEG, grey": (encoded(Image.fromarray(GREY)), by_pillow(encoded(Image.fromarray(GREY)))),
        "JPEG, 1x1": (
            encoded(Image.new("RGB", (1, 1), (200, 200, 200)), subsampling=2),
            np.array([[[200, 200, 200]]]),
        ),
        "JPEG, junk at the end": (jpeg() + b"junk" * 100, plain),
        "JPEG, two of them": (jpeg() + encoded(others[0]), plain),
        "JPEG, several pictures (MPO)": (
            encoded(IMAGE, "MPO", save_all=True, append_images=others, quality=90),
            plain,
        ),
        "JPEG, fill bytes before a marker": (after_start(jpeg(), b"\xff" * 9), plain),
        "JPEG, long metadata": (after_start(jpeg(), *[application(0xED, b"\xff\xd9" * 30_000)] * 3), plain),
        # Without tables, as in Motion JPEG: decoders use the standard tables.
        "JPEG, no Huffman tables": (without(jpeg(), 0xC4), plain),
        "JPEG, a thumbnail": (after_start(jpeg(), exif_and_thumbnail), plain),
        "JPEG, damaged EXIF": (after_start(jpeg(), application(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff!")), plain),
        "JPEG, EXIF cut short": (after_start(jpeg(), application(0xE1, oriented(6)[:20])), plain),
        "JPEG, an invalid orientation": (after_start(jpeg(), application(0xE1, oriented(9))), plain),
        "JPEG, a colour profile": (encoded(IMAGE, quality=90, icc_profile=profile), plain),
    }
    near: dict[str, Valid] = {
        # To three significant bits of alpha, and rounded.
        "PNG, RGB and alpha": (
            encoded(Image.merge("RGBA", [*IMAGE.split(), Image.fromarray(alpha)]), "PNG"),
            on_white(PIXELS, alpha),
            1.5,
        ),
        "PNG, 16-bit grey and alpha": (
            png(WIDTH, HEIGHT, 16, 4, unfiltered(np.stack([GREY, GREY, holes, holes], axis=-1))),
            on_white(as_rgb(GREY), holes),
            1,
        ),
        "WebP, alpha": (
            encoded(Image.merge("RGBA", [*IMAGE.split(), Image.fromarray(holes)]), "WEBP", lossless=True, exact=True),
            on_white(PIXELS, holes),
            1,
        ),
        # Two thirds of the bits are removed at regular intervals.
        "JPEG, RGB": (encoded(IMAGE, quality=99, keep_rgb=True), PIXELS, 8),
        "JPEG, CMYK": (encoded(IMAGE.convert("CMYK"), quality=99, subsampling=0), PIXELS, 8),
        "JPEG, YCCK": (*ycck(), 3),
        "JPEG, dark": (encoded(Image.fromarray(half), quality=100, subsampling=0), half, 4),
    }
    for across, down in [(3, 1), (1, 3), (4, 2)]:
        data, pixels = flat_blocks(across, down)
        near[f"JPEG, luma {across}x{down}"] = (data, as_rgb(pixels), 1)
    if features.check("jpg_2000"):
        exact["JPEG 2000"] = (encoded(IMAGE, "JPEG2000"), PIXELS)
    if features.check("avif"):
        near["AVIF"] = (encoded(Image.fromarray(smooth()), "AVIF", quality=100, subsampling="4:4:4"), smooth(), 6)
    return {name: (data, pixels, 0.0) for name, (data, pixels) in exact.items()} | near


# Name -> file, and a part of the reason.
@cache
def damaged() -> dict[str, tuple[bytes, str]]:
    data = jpeg()
    frame, scan = frame_header(data), segments(data)[-1]
    whole_png, gif, tiff = encoded(IMAGE, "PNG"), encoded(IMAGE.quantize(16), "GIF"), encoded(IMAGE, "TIFF")
    webp, bmp = encoded(IMAGE, "WEBP"), encoded(IMAGE, "BMP")
    rows = unfiltered(PIXELS)
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))
    float_tiff = encoded(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF")
    cmyk = encoded(IMAGE.convert("CMYK"))
    cmyk_scan = segments(cmyk)[-1][2]
    lzw = gif.index(b",", 13 + 3 * 16) + 10
    unknown = "unknown format"
    return {
        "empty": (b"", "empty file"),
        "one byte": (b"\xff", unknown),
        "zeros": (bytes(5000), unknown),
        "noise": (np.random.default_rng(0).bytes(5000), unknown),
        "text": (b"This is not an image.\n" * 20, unknown),
        "text, UTF-16": ("Kein Bild.\n".encode("utf-16") * 20, unknown),
        "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", unknown),
        "SVG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', unknown),
        "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n%%EOF\n", unknown),
        "EPS, a program": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
            unknown,
        ),
        "ZIP": (b"PK\x03\x04" + bytes(100), unknown),
        "HEIC": (struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200), "unreadable image"),
        "JPEG XL": (b"\xff\x0a" + bytes(200), "JPEG XL"),
        "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", unknown),
        "JPEG, two bytes": (data[:2], unknown),
        "JPEG, no frame": (data[:frame], "unreadable image"),
        "JPEG, half a frame header": (data[: frame + 9], "unreadable image"),
        "JPEG, header only": (data[: scan[2]], "damaged JPEG"),
        "JPEG, half": (data[: len(data) // 2], "damaged JPEG"),
        "JPEG, no end": (data[:-2], "damaged JPEG"),
        "JPEG, the middle missing": (data[: scan[2] + 100] + data[-100:], "damaged JPEG"),
        "JPEG, CMYK, the middle missing": (cmyk[: cmyk_scan + 100] + cmyk[-100:], "damaged JPEG"),
        "JPEG, an odd header, the middle missing": (
            patched(data, 11, 2)[: scan[2] + 100] + data[-100:],
            "damaged JPEG",
        ),
        "JPEG, height 0": (resized_header(data, 0, WIDTH), "unreadable image"),
        "JPEG, width 0": (resized_header(data, HEIGHT, 0), "unreadable image"),
        "JPEG, 12 bits": (patched(data, frame + 4, 12), "unreadable image"),
        "JPEG, two components": (patched(data, frame + 9, 2), "unreadable image"),
        "JPEG, lossless": (patched(data, frame + 1, 0xC3), "unreadable image"),
        "JPEG, higher than it is": (resized_header(data, 5 * HEIGHT, WIDTH), "damaged JPEG"),
        "JPEG, 40,000x40,000": (resized_header(data, 40_000, 40_000), "40000x40000 pixels"),
        "JPEG, no quantisation table": (without(data, 0xDB), "damaged JPEG"),
        "PNG, signature only": (whole_png[:8], "unreadable image"),
        "PNG, header only": (whole_png[:33], "unreadable image"),
        "PNG, half": (whole_png[: len(whole_png) // 2], "truncated"),
        "PNG, rows missing": (png(WIDTH, HEIGHT, 8, 2, rows[: len(rows) // 2]), "unreadable image"),
        "PNG, damaged header": (patched(whole_png, 20, 1), "unreadable image"),
        "PNG, damaged pixels": (patched(whole_png, 60, *b"\xff\xff\xff\xff"), "unreadable image"),
        "PNG, width 0": (resized_header(whole_png, HEIGHT, 0), "unreadable image"),
        "PNG, 40,000x40,000": (resized_header(whole_png, 40_000, 40_000), "pixels"),
        "PNG, 2,147,483,647 wide": (resized_header(whole_png, 2**31 - 1, 2**31 - 1), "pixels"),
        "PNG, text that unpacks to 100 MB": (png(WIDTH, HEIGHT, 8, 2, rows, bomb), "too large"),
        "GIF, half": (gif[: len(gif) // 2], "unreadable image"),
        "GIF, damaged pixels": (patched(gif, lzw + 2, *b"\xff" * 20), "unreadable image"),
        "BMP, half": (bmp[: len(bmp) // 2], "truncated"),
        "BMP, 40,000x40,000": (patched(bmp, 18, *struct.pack("<II", 40_000, 40_000)), "pixels"),
        "TIFF, half": (tiff[: len(tiff) // 2], "unreadable image"),
        "TIFF, floating point": (float_tiff, "floating-point"),
        "WebP, half": (webp[: len(webp) // 2], "unreadable image"),
        "WebP, header only": (webp[:30], "unreadable image"),
        "PPM, half": (encoded(IMAGE, "PPM")[: HEIGHT * WIDTH], "unreadable image"),
        "PPM, 40,000x40,000": (b"P6 40000 40000 255\n" + bytes(100), "pixels"),
    }


def outcome(read: Callable[[], object]) -> str:
    """The one-line reason of an InputError, or an empty string. Any other exception is a crash."""
    started = time.perf_counter()
    try:
        read()
        reason = ""
    except InputError as error:
        reason = str(error)
        assert reason
        assert reason.isprintable(), reason
    assert time.perf_counter() - started < SECONDS
    return reason


def reason_of(data: bytes) -> str:
    """The reason from verification. Decoding must fail or succeed alike."""
    checked = outcome(lambda: check_image(data))
    decoded = outcome(lambda: pixels_of(open_image(data)))
    assert bool(checked) == bool(decoded), (checked, decoded)
    return checked


def python(code: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, env=environment, timeout=60)


# JPEGs with damage that Pillow, OpenCV and torchvision ignore, as it is outside of the pixels.
@cache
def blemished() -> dict[str, bytes]:
    data, progressive = jpeg(), encoded(IMAGE, progressive=True)
    restarts, cmyk = encoded(IMAGE, restart_marker_rows=1), encoded(IMAGE.convert("CMYK"))
    scan, tables = segments(data)[-1], next(start for marker, start, _ in segments(data) if marker == 0xDB)
    stray = np.random.default_rng(0).integers(0, 255, 228, np.uint8).tobytes()
    return {
        "20 zeros before the end": data[:-2] + bytes(20) + data[-2:],
        "228 bytes before the end": data[:-2] + stray + data[-2:],
        "escaped markers before the end": data[:-2] + b"\xff\0\x12" * 9 + data[-2:],
        "progressive": progressive[:-2] + stray + progressive[-2:],
        "restart markers": restarts[:-2] + stray + restarts[-2:],
        "CMYK": cmyk[:-2] + stray + cmyk[-2:],
        "before the tables": data[:tables] + b"\x12\x34" + data[tables:],
        "before the scan": data[: scan[1]] + b"\x12" + data[scan[1] :],
        "an unknown JFIF revision": patched(data, 11, 2),
        "an unknown Adobe transform": after_start(without(data, 0xE0), application(0xEE, b"Adobe\0\x64\0\0\0\0\x07")),
        "wrong parameters of the scan": patched(data, scan[2] - 2, 0),
        "two of them": patched(data, 11, 2)[:-2] + stray + data[-2:],
        # Bytes that the decoder skips at the end can't be told from bytes that it left over after damage.
        "the middle zero": data[: scan[2] + 100] + bytes(400) + data[scan[2] + 500 :],
    }


@pytest.mark.fast
@pytest.mark.parametrize("kind", blemished())
def test_a_jpeg_with_a_blemish_is_read_whole_and_reported(kind: str) -> None:
    data = blemished()[kind]
    expected = by_pillow(data)
    assert check_image(data)
    np.testing.assert_array_equal(pixels_of(open_image(data)), expected)
    np.testing.assert_array_equal(pixels_of(open_image(data), (5, 6, 20, 30)), expected[5:25, 6:36])


@pytest.mark.parametrize("kind", valid())
def test_a_whole_file_has_no_blemish(kind: str) -> None:
    assert check_image(valid()[kind][0]) == ""


def test_a_missing_plugin_is_named() -> None:
    for data, module, extra in (
        (struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic", "pillow_heif", "heif"),
        (b"\xff\x0a" + bytes(20), "pillow_jxl", "jxl"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert f"pip install 'jaxnets[{extra}]'" in outcome(lambda data=data: check_image(data))


def test_there_are_at_least_forty_kinds() -> None:
    assert len(valid()) >= 45
    assert len(damaged()) >= 40


@pytest.mark.parametrize("kind", valid())
def test_a_valid_image_shows_its_pixels(kind: str) -> None:
    data, expected, tolerance = valid()[kind]
    check_image(data)
    opened = open_image(data)
    actual = pixels_of(opened)
    assert (actual.dtype, actual.shape, size_of(opened)) == (np.uint8, expected.shape, expected.shape[:2])
    assert np.abs(actual - expected.astype(np.float64)).max() <= tolerance


@pytest.mark.fast
@pytest.mark.parametrize("kind", damaged())
def test_a_damaged_image_is_refused_with_a_reason(kind: str) -> None:
    data, word = damaged()[kind]
    assert word in reason_of(data)


@pytest.mark.parametrize(
    "data", slow_except(["JPEG, 40,000x40,000"], ["JPEG, 40,000x40,000", "PNG, 40,000x40,000", "BMP, 40,000x40,000"])
)
def test_a_huge_size_in_the_header_takes_no_memory(data: str) -> None:
    # The process may use half of the memory that the pixels would need.
    code = (
        "import resource, sys; from jaxnets.data.decoding import check_image; from jaxnets.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2_400_000_000,) * 2)\n"
        "try: check_image(sys.stdin.buffer.read())\n"
        "except InputError as error: print(error)\n"
    )
    done = python(code, damaged()[data][0])
    assert b"at most 179 million" in done.stdout or b"exceeds limit" in done.stdout, (done.stdout, done.stderr)


# ---- regions of a JPEG ----

SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


@cache
def jpegs() -> dict[str, bytes]:
    image = Image.fromarray(photo(203, 151))
    grey = image.convert("L")
    found = {}
    for sampling in SAMPLINGS:
        found[f"baseline {sampling}"] = encoded(image, subsampling=sampling)
        found[f"progressive {sampling}"] = encoded(image, subsampling=sampling, progressive=True)
        found[f"restarts {sampling}"] = encoded(image, subsampling=sampling, restart_marker_blocks=5)
    found["restart markers by the row"] = encoded(image, restart_marker_rows=1)
    restarts = found["restarts 4:2:0"]
    (_, start, end), frame = next(part for part in segments(restarts) if part[0] == 0xDD), frame_header(restarts)
    found["restarts said before the frame"] = (
        restarts[:frame] + restarts[start:end] + restarts[frame:start] + restarts[end:]
    )
    found["grey"] = encoded(grey)
    found["grey, progressive"] = encoded(grey, progressive=True)
    found["RGB"] = encoded(image, keep_rgb=True)
    found["optimised tables"] = encoded(image, optimize=True)
    found["junk at the end"] = found["baseline 4:2:0"] + b"junk"
    for orientation in range(1, 9):
        found[f"orientation {orientation}"] = encoded(image, exif=oriented(orientation))
        found[f"orientation {orientation}, 4:2:2"] = encoded(image, exif=oriented(orientation), subsampling="4:2:2")
    return found


@st.composite
def boxes(draw: st.DrawFn, height: int, width: int) -> tuple[int, int, int, int]:
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left))


@pytest.mark.fast
@pytest.mark.parametrize("kind", jpegs())
def test_a_region_equals_that_region_of_the_whole_image(kind: str) -> None:
    data = jpegs()[kind]
    whole = by_pillow(data)

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(box=boxes(*whole.shape[:2]))
    def check(box: tuple[int, int, int, int]) -> None:
        top, left, height, width = box
        opened = open_image(data)
        assert isinstance(opened, Jpeg)
        assert size_of(opened) == whole.shape[:2]
        actual = pixels_of(opened, box)
        np.testing.assert_array_equal(actual, whole[top : top + height, left : left + width])
        # `smallest` equals the size of the region, so nothing is reduced.
        np.testing.assert_array_equal(pixels_of(opened, box, smallest=min(height, width) // 2 + 1), actual)

    check()


@pytest.mark.parametrize("kind", [kind for kind in jpegs() if "orientation" not in kind])
def test_a_reduced_region_equals_libjpegs_reduction(kind: str) -> None:
    data = jpegs()[kind]
    reduced = {}
    for factor in (2, 4, 8):
        image = Image.open(io.BytesIO(data))
        image.draft(None, (image.width // factor, image.height // factor))
        reduced[factor] = np.asarray(image.convert("RGB"))

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(box=boxes(203, 151), smallest=st.integers(1, 40))
    def check(box: tuple[int, int, int, int], smallest: int) -> None:
        top, left, height, width = box
        factor = max((f for f in (1, 2, 4, 8) if min(height, width) // f >= smallest), default=1)
        actual = pixels_of(open_image(data), box, smallest)
        assert actual.shape == (height // factor, width // factor, 3)
        if factor > 1:
            whole = reduced[factor]
            top = min(int(top / factor + 0.5), len(whole) - len(actual))
            left = min(int(left / factor + 0.5), whole.shape[1] - actual.shape[1])
            expected = whole[top : top + actual.shape[0], left : left + actual.shape[1]]
            np.testing.assert_array_equal(actual, expected)

    check()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_reduced_region_is_close_to_the_area_average(sampling: str, orientation: int) -> None:
    # The size is not a multiple of the block size.
    data = encoded(
        Image.fromarray(smooth(203, 149, breadth=6)), exif=oriented(orientation), subsampling=sampling, quality=95
    )
    whole = by_pillow(data).astype(np.float64)
    rng = np.random.default_rng(orientation)
    for factor in (2, 4, 8):
        for _ in range(3):
            top, left = (int(rng.integers(8, side - 60)) // factor * factor for side in whole.shape[:2])
            height, width = (int(rng.integers(24, 60)) for _ in range(2))
            rows, columns = height // factor, width // factor
            actual = pixels_of(open_image(data), (top, left, height, width), smallest=min(rows, columns))
            assert actual.shape[:2] == (rows, columns)
            # In a mirrored image the reduced pixels may be shifted by less than one reduced pixel.
            shifts = range(1 if orientation == 1 else factor)
            distances = [
                np.abs(actual - averages(whole[top - up :, left - before :], rows, columns, factor)).mean()
                for up in shifts
                for before in shifts
            ]
            # At 1/8, 4:2:2 has one chroma value for two pixels. A shift by two pixels would differ by about 20.
            assert min(distances) < (3.5 if factor == 8 else 2), factor


def averages(pixels: np.ndarray, rows: int, columns: int, factor: int) -> np.ndarray:
    part = pixels[: rows * factor, : columns * factor]
    return part.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))


@pytest.mark.fast
def test_the_eight_orientations_show_the_same_scene() -> None:
    scene = smooth(48, 80)
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.swapaxes(0, 1),
        6: np.rot90(scene),
        7: np.rot90(scene, 2).swapaxes(0, 1),
        8: np.rot90(scene, -1),
    }
    for orientation, pixels in stored.items():
        image = Image.fromarray(np.ascontiguousarray(pixels))
        data = encoded(image, exif=oriented(orientation), quality=98, subsampling=0)
        assert np.abs(pixels_of(open_image(data)).astype(int) - scene).max() < 12, orientation


def test_uint8_arrays_are_accepted() -> None:
    np.testing.assert_array_equal(pixels_of(open_image(PIXELS), (3, 4, 20, 10)), PIXELS[3:23, 4:14])
    for grey in (GREY, GREY[..., None]):
        check_image(grey)
        np.testing.assert_array_equal(pixels_of(open_image(grey), smallest=2), as_rgb(GREY))
    for wrong in (PIXELS.astype(np.float32), PIXELS[..., :2], PIXELS[:0], PIXELS[None], np.zeros((3, 3, 4), np.uint8)):
        assert "expected uint8" in outcome(lambda wrong=wrong: check_image(wrong))


# ---- random damage ----


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_every_truncated_jpeg_is_refused(options: dict[str, bool]) -> None:
    data = encoded(IMAGE, **options)
    for length in [*np.linspace(0, len(data) - 1, 60).astype(int).tolist(), len(data) - 2, len(data) - 3]:
        assert reason_of(data[:length]), length


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_truncated_files_are_refused(kind: str) -> None:
    data = encoded(IMAGE.quantize(32) if kind == "GIF" else IMAGE, kind)
    # Only up to the last pixels: the rest, such as a PNG's IEND, is not needed.
    for length in np.linspace(0, 0.97 * len(data), 60).astype(int).tolist():
        assert reason_of(data[:length]), length


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy of the file: bytes are changed, removed, repeated, inserted, zeroed or truncated."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        # Half of the damage is in the header.
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 200)
        place = int(rng.integers(0, max(reach, 1)))
        length = int(rng.integers(1, 40))
        match int(rng.integers(0, 7)):
            case 0 | 1:
                changed[place : place + 1] = rng.bytes(1)
            case 2:
                changed[place : place + length] = rng.bytes(length)
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length]
            case 5:
                changed[place : place + length] = bytes(length)
            case 6:
                del changed[max(place, len(changed) // 3) :]
    return bytes(changed)


MUTATED = {
    "JPEG": {},
    "JPEG, progressive": {"progressive": True},
    "JPEG, restarts": {"restart_marker_blocks": 3},
    "JPEG, turned": {"exif": oriented(6)},
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {},
    "PPM": {},
}


@pytest.mark.parametrize("kind", MUTATED)
def test_random_damage_never_crashes(kind: str) -> None:
    data = encoded(IMAGE, kind.split(",")[0], **MUTATED[kind])
    rng = np.random.default_rng(len(data))
    started = time.perf_counter()
    refused = sum(bool(reason_of(mutated(data, rng))) for _ in range(40))
    assert time.perf_counter() - started < 2 * SECONDS
    assert refused


def test_flipped_bytes_of_a_jpeg_are_reported_or_decoded() -> None:
    # A flip may yield a valid file. Verification and decoding must agree.
    data = encoded(Image.fromarray(photo(203, 151)))
    start, rng = segments(data)[-1][2], np.random.default_rng(1)
    accepted = 0
    for place in rng.integers(start, len(data) - 2, 200).tolist():
        flipped = patched(data, place, data[place] ^ int(rng.integers(1, 256)))
        accepted += not reason_of(flipped)
        # Training must be able to crop every image that passes verification.
        outcome(lambda flipped=flipped: pixels_of(open_image(flipped), (20, 20, 60, 60), smallest=20))
    assert accepted < 200


def test_damage_above_a_region_is_reported_and_damage_below_is_ignored() -> None:
    data = encoded(Image.fromarray(photo(403, 151)), quality=95)
    start = segments(data)[-1][2]
    place = start + (len(data) - start) // 2
    # At an unexpected marker, libjpeg warns and fills the rest of the image.
    broken = patched(data, place, 0xFF, 0xD0)
    assert "damaged JPEG" in outcome(lambda: pixels_of(open_image(broken), (300, 0, 50, 50)))
    zeroed = patched(data, place, *bytes(40))
    assert "extraneous bytes" in check_image(zeroed)
    top = pixels_of(open_image(zeroed), (0, 0, 50, 50))
    np.testing.assert_array_equal(top, by_pillow(data)[:50, :50])


def test_threads_do_not_change_warning_filters() -> None:
    files = [valid()[name][0] for name in ("PNG", "TIFF, LZW", "WebP, lossless", "GIF")]
    before = list(warnings.filters)

    def decode() -> None:
        for _ in range(30):
            for data in files:
                check_image(data)

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_unusual_files_print_nothing() -> None:
    # A separate process shows what libraries print.
    names = ["JPEG, damaged EXIF", "JPEG, EXIF cut short", "TIFF, several pages", "PNG, palette with a clear colour"]
    files = [valid()[name][0] for name in names] + [data for data, _ in damaged().values()]
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "zstd"):
        files.append(patched(encoded(IMAGE, "TIFF", compression=compression), 40, *bytes(60)))
    code = (
        "import pickle, sys; from jaxnets.data.decoding import check_image; from jaxnets.errors import InputError\n"
        # Pillow warns about this many pixels.
        f"from PIL import Image; Image.MAX_IMAGE_PIXELS = {HEIGHT * WIDTH - 1}\n"
        "for data in pickle.load(sys.stdin.buffer):\n"
        "    try: check_image(data)\n"
        "    except InputError: pass\n"
    )
    done = python(code, pickle.dumps(files))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
