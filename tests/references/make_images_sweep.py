"""Writes images_sweep.npz: small image files of many formats and modes by ten writers, and the pixels that others read.

Needs torch 2.14.1, torchvision 0.29.1, pillow 13.0.0, opencv-python-headless 5.0.0.93, tifffile 2026.3.3, imagecodecs
2026.3.6, imageio 2.38.1, pyvips[binary] 3.2.0, scikit-image 0.26.0, pypng 0.20220715.0, pillow-heif 1.8.1:
python -m tests.references.make_images_sweep

`files` are the files one after the other, `pixels` the expected RGB pixels likewise; the entry `cases` describes them
in JSON. The expected pixels are those of the named reader: upright, on white, scaled to 8 bits. For lossless files they
agree with the array that was written. Files without expected pixels have to be refused.
"""

import io
import json
import struct
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import imageio.v3
import numpy as np
import pillow_heif
import png
import pyvips
import skimage.color
import skimage.io
import tifffile
import torch
from PIL import Image, PngImagePlugin
from torchvision.io import ImageReadMode, decode_image, encode_jpeg, encode_png

from tests.references import raw_images

HEIGHT, WIDTH = 13, 18
_y, _x = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([(7 * _x + 11 * _y) % 256, 255 - 13 * _x, 19 * _y], axis=-1).astype(np.uint8)
GREY = RGB[..., 0] // 2 + 9 * _y.astype(np.uint8)
RGB16 = RGB.astype(np.uint16) * 256 + np.roll(RGB, 3, axis=1)
GREY16 = GREY.astype(np.uint16) * 256 + 201
ALPHA = np.where(_x < 5, 0, np.where(_x < 9, 128, 255)).astype(np.uint8)
ALPHA16 = ALPHA.astype(np.uint16) * 257
RGBA, LA = np.dstack([RGB, ALPHA]), np.dstack([GREY, ALPHA])
RGBA16 = np.dstack([RGB16, ALPHA16])
LA16 = np.dstack([GREY16, ALPHA16])
BITS = GREY > 90
# Smooth, for lossy formats.
SMOOTH = np.stack([40 + 8 * _x, 200 - 9 * _y, 60 + 4 * _x + 5 * _y], axis=-1).astype(np.uint8)
SMOOTH_GREY = SMOOTH[..., 2].copy()
PALETTE = np.random.default_rng(0).integers(0, 256, (16, 3), np.uint8)
INDICES = ((_x + 3 * _y) % 16).astype(np.uint8)
COLOURS = PALETTE[INDICES]
CMYK = np.dstack([255 - SMOOTH, SMOOTH_GREY // 4])
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)

cases: list[dict[str, Any]] = []
files: list[bytes] = []
expected: list[np.ndarray] = []


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Any grey, grey and alpha, RGB or RGBA array of 1, 8 or 16 bits as RGB on white, 0 to 255."""
    most = {np.dtype(bool): 1, np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}[pixels.dtype]
    values = np.atleast_3d(pixels) * (255.0 / most)
    alpha = values[..., -1:] / 255 if values.shape[-1] in (2, 4) else 1.0
    colours = values[..., : 3 if values.shape[-1] > 2 else 1]
    return np.broadcast_to(colours * alpha + 255 * (1 - alpha), (*values.shape[:2], 3))


def from_cmyk(inks: np.ndarray) -> np.ndarray:
    return (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright pixels as a camera stores them with `orientation`."""
    changes = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(changes[orientation](pixels))


# ---- readers ----


def by_opencv(data: bytes) -> np.ndarray:
    upright = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2:
        return on_white(pixels)
    return on_white(pixels[..., [2, 1, 0, 3]]) if pixels.shape[-1] == 4 else on_white(upright)


def by_opencv_exactly(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return on_white(pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]])


def by_vips(data: bytes) -> np.ndarray:
    pixels = pyvips.Image.new_from_buffer(data, "").autorot().numpy()
    return on_white(pixels)


def by_torchvision(data: bytes) -> np.ndarray:
    pixels = decode_image(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB, apply_exif_orientation=True
    )
    return on_white(pixels.permute(1, 2, 0).numpy())


def by_tifffile(data: bytes) -> np.ndarray:
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    pixels = page.asarray()
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        pixels = np.moveaxis(pixels, 0, -1)
    if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        return from_cmyk(pixels if pixels.dtype == np.uint8 else pixels / 257)
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        return on_white(page.colormap.T[pixels])
    if page.bitspersample not in (1, 8, 16):
        pixels = (pixels * (65535 / (2**page.bitspersample - 1))).round().astype(np.uint16)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = ~pixels
    return on_white(pixels)


def by_pypng(data: bytes) -> np.ndarray:
    width, height, rows, info = png.Reader(bytes=data).asDirect()
    pixels = np.array([list(row) for row in rows]).reshape(height, width, info["planes"])
    return on_white((pixels * (65535 / (2 ** info["bitdepth"] - 1))).round().astype(np.uint16))


def by_imagecodecs(name: str) -> Any:
    return lambda data: on_white(getattr(imagecodecs, f"{name}_decode")(data))


def by_heif(data: bytes) -> np.ndarray:
    return on_white(imagecodecs.heif_decode(data))


def case(
    writer: str,
    name: str,
    data: bytes,
    reader: Any,
    written: np.ndarray | None = None,
    tolerance: float = 1.0,
) -> None:
    """Adds a file. `reader` is a function of the file, or None for the array that was written, by NumPy."""
    source = "NumPy" if reader is None else reader.__name__.removeprefix("by_").replace("<lambda>", "imagecodecs")
    pixels = written if reader is None else reader(data)
    assert pixels is not None
    if written is not None:
        assert pixels.shape == written.shape, (name, pixels.shape, written.shape)
        difference = np.abs(pixels - written).max()
        assert difference <= tolerance, (writer, name, source, difference)
    cases.append({"name": f"{writer}: {name}", "reader": source, "tolerance": tolerance, "shape": pixels.shape})
    files.append(data)
    expected.append(pixels.round().astype(np.uint8))


def refused(writer: str, name: str, data: bytes) -> None:
    cases.append({"name": f"{writer}: {name}", "reader": "", "tolerance": 0.0, "shape": (0, 0, 3)})
    files.append(data)
    expected.append(np.empty((0, 0, 3), np.uint8))


# ---- writers ----


def by_pillow_write(array: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def pillow_files() -> None:
    save = by_pillow_write
    palette = Image.fromarray(INDICES, "P")
    palette.putpalette(PALETTE.tobytes())
    rgb, colours = on_white(RGB), on_white(COLOURS)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for more in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}):
            name = f"JPEG {subsampling} {next(iter(more), '')}"
            case("Pillow", name, save(RGB, "JPEG", subsampling=subsampling, **more), by_opencv, tolerance=0)
    case("Pillow", "JPEG grey", save(GREY, "JPEG"), by_torchvision, tolerance=0)
    case("Pillow", "JPEG quality 5", save(RGB, "JPEG", quality=5), by_torchvision, tolerance=0)
    case("Pillow", "JPEG RGB", save(SMOOTH, "JPEG", keep_rgb=True, quality=98), by_opencv, on_white(SMOOTH), 6)
    cmyk = save(Image.fromarray(CMYK, "CMYK"), "JPEG", quality=100)
    case("Pillow", "JPEG CMYK", cmyk, None, from_cmyk(CMYK), 8)
    for orientation in range(1, 9):
        data = save(turned(SMOOTH, orientation), "JPEG", exif=exif(orientation), quality=99, subsampling=0)
        case("Pillow", f"JPEG orientation {orientation}", data, by_torchvision, on_white(SMOOTH), 6)
        data = save(turned(RGB, orientation), "PNG", exif=exif(orientation))
        case("Pillow", f"PNG orientation {orientation}", data, by_torchvision, rgb, 0)
        data = save(turned(RGB, orientation), "TIFF", tiffinfo={274: orientation})
        case("Pillow", f"TIFF orientation {orientation}", data, by_vips, rgb, 0)
        data = save(turned(RGB, orientation), "WEBP", exif=exif(orientation), lossless=True)
        case("Pillow", f"WebP orientation {orientation}", data, by_opencv, rgb, 0)
    plain = save(RGB, "JPEG")
    both = raw_images.after_start(plain, raw_images.jpeg_segment(0xE1, exif(6)), raw_images.jpeg_segment(0xE1, exif(1)))
    case("Pillow", "JPEG with two EXIF segments", both, by_torchvision, tolerance=0)
    data = raw_images.after_start(plain, raw_images.jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP))
    case("Pillow", "JPEG with an XMP orientation", data, by_torchvision, tolerance=0)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    case("Pillow", "PNG with an XMP orientation", save(RGB, "PNG", pnginfo=text), by_vips, rgb, 0)
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif(6)):8}\n{exif(6).hex()}\n")
    case("Pillow", "PNG with EXIF as text", save(RGB, "PNG", pnginfo=text), by_vips, rgb, 0)
    case("Pillow", "WebP with an XMP orientation", save(RGB, "WEBP", xmp=XMP, lossless=True), by_vips, rgb, 0)
    case("Pillow", "TIFF with an XMP orientation", save(RGB, "TIFF", tiffinfo={700: XMP}), by_vips, rgb, 0)
    for blank in (20, 228):
        stray = np.random.default_rng(blank).integers(0, 255, blank, np.uint8).tobytes()
        data = plain[:-2] + stray + plain[-2:]
        case("Pillow", f"JPEG with {blank} stray bytes", data, by_opencv, by_opencv(plain), 0)
    modes = {"1": BITS, "L": GREY, "LA": LA, "RGB": RGB, "RGBA": RGBA, "I;16": GREY16}
    for mode, array in modes.items():
        case("Pillow", f"PNG {mode}", save(array, "PNG"), by_vips, on_white(array))
    case("Pillow", "PNG P", save(palette, "PNG"), by_opencv, colours, 0)
    clear = np.dstack([COLOURS, np.where(INDICES == 3, 0, 255).astype(np.uint8)])
    case("Pillow", "PNG P, clear colour", save(palette, "PNG", transparency=3), by_vips, on_white(clear))
    case("Pillow", "GIF", save(palette, "GIF"), by_opencv, colours, 0)
    case("Pillow", "GIF, clear colour", save(palette, "GIF", transparency=3), by_vips, on_white(clear), 0)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"):
        for mode, array in modes.items():
            data = save(array, "TIFF", compression=compression)
            # The wheel of pyvips has no Zstandard.
            reader = by_tifffile if compression == "zstd" and mode != "1" else by_vips
            if (compression, mode) != ("zstd", "1"):
                case("Pillow", f"TIFF {mode} {compression}", data, reader, on_white(array), 2)
    case("Pillow", "TIFF 1 group4", save(BITS, "TIFF", compression="group4"), by_vips, on_white(BITS), 0)
    case("Pillow", "TIFF P", save(palette, "TIFF"), by_tifffile, colours, 1)
    case("Pillow", "TIFF CMYK", save(Image.fromarray(CMYK, "CMYK"), "TIFF"), by_tifffile, from_cmyk(CMYK), 1)
    case("Pillow", "TIFF JPEG", save(SMOOTH, "TIFF", compression="jpeg", quality=95), by_vips, on_white(SMOOTH), 8)
    for mode in ("1", "L", "RGB"):
        case("Pillow", f"BMP {mode}", save(modes[mode], "BMP"), by_opencv, on_white(modes[mode]), 0)
        case("Pillow", f"PPM {mode}", save(modes[mode], "PPM"), by_opencv, on_white(modes[mode]), 0)
    case("Pillow", "BMP P", save(palette, "BMP"), by_opencv, colours, 0)
    # Without masks in the header, the fourth byte has no meaning.
    case("Pillow", "BMP RGBA", save(RGBA, "BMP"), by_opencv_exactly, rgb, 0)
    for mode in ("L", "RGB"):
        case(
            "Pillow",
            f"JPEG 2000 {mode}",
            save(modes[mode], "JPEG2000"),
            by_imagecodecs("jpeg2k"),
            on_white(modes[mode]),
            0,
        )
    for mode in ("L", "LA", "RGB", "RGBA"):
        for compression in (None, "tga_rle"):
            data = save(modes[mode], "TGA", compression=compression)
            case("Pillow", f"TGA {mode} {compression}", data, None, on_white(modes[mode]))
    case("Pillow", "TGA P", save(palette, "TGA"), None, colours, 0)
    case("Pillow", "WebP", save(RGB, "WEBP"), by_imagecodecs("webp"), tolerance=0)
    case("Pillow", "WebP RGBA", save(RGBA, "WEBP", lossless=True, exact=True), by_opencv, on_white(RGBA))
    case("Pillow", "AVIF", save(SMOOTH, "AVIF", quality=95, subsampling="4:4:4"), by_opencv, on_white(SMOOTH), 6)
    case("Pillow", "AVIF 4:2:0", save(SMOOTH, "AVIF", quality=95), by_opencv, on_white(SMOOTH), 12)
    others = [Image.fromarray(RGB[::-1].copy())]
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = save(RGB, kind, save_all=True, append_images=others, **options)
        case("Pillow", f"{kind}, two images", data, by_vips, rgb, 0)
    icon = save(np.pad(RGBA, ((0, 3), (0, 0), (0, 0)))[:, :16], "ICO", sizes=[(16, 16)])
    case("Pillow", "ICO", icon, None, on_white(np.pad(RGBA, ((0, 3), (0, 0), (0, 0)))[:, :16]))
    refused("Pillow", "TIFF, floating-point", save(GREY.astype(np.float32), "TIFF"))
    refused("Pillow", "TIFF, 32 bits", save(GREY.astype(np.int32), "TIFF"))


def opencv_files() -> None:
    def write(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
        bgr = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]
        done, data = cv2.imencode(suffix, bgr, list(options))
        assert done
        return data.tobytes()

    arrays = {"8-bit grey": GREY, "8-bit RGB": RGB, "8-bit RGBA": RGBA}
    wide = {"16-bit grey": GREY16, "16-bit RGB": RGB16, "16-bit RGBA": RGBA16}
    for name, array in (arrays | wide).items():
        case("OpenCV", f"PNG {name}", write(".png", array), by_vips, on_white(array))
        if not name.endswith("RGBA"):
            data = write(".tiff", array, cv2.IMWRITE_TIFF_COMPRESSION, 8)
            case("OpenCV", f"TIFF {name}", data, by_tifffile, on_white(array))
            case(
                "OpenCV",
                f"PNM {name}",
                write(".ppm" if array.ndim == 3 else ".pgm", array),
                by_opencv_exactly,
                on_white(array),
            )
    for name in ("8-bit RGBA", "16-bit RGBA"):
        case(
            "OpenCV",
            f"TIFF {name}",
            write(".tiff", (arrays | wide)[name]),
            by_tifffile,
            on_white((arrays | wide)[name]),
            2,
        )
    case(
        "OpenCV",
        "PNG 1 bit",
        write(".png", BITS * np.uint8(255), cv2.IMWRITE_PNG_BILEVEL, 1),
        by_vips,
        on_white(BITS),
        0,
    )
    for name, array in arrays.items():
        case(
            "OpenCV",
            f"BMP {name}",
            write(".bmp", array),
            by_imagecodecs("bmp") if array.ndim == 2 else by_opencv_exactly,
            on_white(array),
        )
    for name, factor in (
        ("4:4:4", 0x111111),
        ("4:2:2", 0x211111),
        ("4:2:0", 0x221111),
        ("4:4:0", 0x121111),
        ("4:1:1", 0x411111),
    ):
        data = write(".jpg", RGB, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor)
        case("OpenCV", f"JPEG {name}", data, by_torchvision, tolerance=0)
    case("OpenCV", "JPEG progressive", write(".jpg", RGB, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), by_torchvision, tolerance=0)
    case("OpenCV", "JPEG restarts", write(".jpg", RGB, cv2.IMWRITE_JPEG_RST_INTERVAL, 1), by_torchvision, tolerance=0)
    case("OpenCV", "WebP", write(".webp", RGB, cv2.IMWRITE_WEBP_QUALITY, 60), by_vips, tolerance=0)
    case("OpenCV", "WebP lossless", write(".webp", RGB, cv2.IMWRITE_WEBP_QUALITY, 101), by_vips, on_white(RGB), 0)
    case(
        "OpenCV",
        "AVIF 10 bits",
        write(".avif", SMOOTH.astype(np.uint16) << 2, cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 95),
        by_vips,
        on_white(SMOOTH),
        12,
    )
    case("OpenCV", "PBM", write(".pbm", BITS * np.uint8(255)), by_opencv_exactly, on_white(BITS), 0)
    tall = np.tile(RGB, (4, 3, 1))
    for name, array in (("8-bit RGB", tall), ("16-bit grey", np.tile(GREY16, (4, 3)))):
        data = write(".jp2", array, cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)
        case("OpenCV", f"JPEG 2000 {name}", data, by_imagecodecs("jpeg2k"), on_white(array), 1)


def tifffile_files() -> None:
    def write(array: np.ndarray, **options: Any) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, array, **({"photometric": "rgb" if array.ndim > 2 else "minisblack"} | options))
        return file.getvalue()

    arrays = {"8-bit grey": GREY, "16-bit grey": GREY16, "8-bit RGB": RGB, "16-bit RGB": RGB16}
    for name, array in arrays.items():
        for order in ("<", ">"):
            for options in (
                {},
                {"compression": "zlib", "predictor": True},
                {"compression": "lzw"},
                {"tile": (16, 16)},
                {"bigtiff": True},
                {"rowsperstrip": 3},
            ):
                data = write(array, byteorder=order, **options)
                case("tifffile", f"{name} {order} {options}", data, by_tifffile, on_white(array))
    for name, array in (("8-bit", RGB), ("16-bit", RGB16)):
        planes = np.moveaxis(array, -1, 0)
        for options in ({}, {"compression": "zlib"}, {"rowsperstrip": 4}):
            data = write(planes, planarconfig="separate", **options)
            case("tifffile", f"{name} planes {options}", data, by_vips, on_white(array))
    for bits in (8, 16):
        array = GREY if bits == 8 else GREY16
        for order in ("<", ">"):
            for options in ({}, {"compression": "zlib"}):
                data = write(~array, photometric="miniswhite", byteorder=order, **options)
                case("tifffile", f"WhiteIsZero {bits} {order} {options}", data, by_vips, on_white(array))
    for bits in (10, 12, 14):
        array = GREY16 >> (16 - bits)
        grey = np.repeat(array[..., None] * (255 / (2**bits - 1)), 3, axis=-1)
        case("tifffile", f"{bits} bits", write(array, bitspersample=bits), by_tifffile, grey)
        data = write((2**bits - 1 - array).astype(np.uint16), bitspersample=bits, photometric="miniswhite")
        case("tifffile", f"WhiteIsZero {bits} bits", data, by_tifffile, grey)
    for bits in (1, 2, 4):
        array = GREY >> (8 - bits)
        grey = np.repeat(array[..., None] * (255 / (2**bits - 1)), 3, axis=-1)
        case("tifffile", f"{bits} bits", write(array, bitspersample=bits), by_vips, grey)
        data = write((2**bits - 1 - array).astype(np.uint8), bitspersample=bits, photometric="miniswhite")
        case("tifffile", f"WhiteIsZero {bits} bits", data, by_vips, grey)
    for name, array in (("8-bit", RGBA), ("16-bit", RGBA16)):
        data = write(array, extrasamples=["unassalpha"])
        case("tifffile", f"{name} alpha", data, by_vips, on_white(array))
        alpha = array[..., 3:] / (255 if array.dtype == np.uint8 else 65535)
        premultiplied = np.dstack([(array[..., :3] * alpha).round().astype(array.dtype), array[..., 3]])
        data = write(premultiplied, extrasamples=["assocalpha"])
        case("tifffile", f"{name} premultiplied alpha", data, None, on_white(array), 2)
        data = write(array, extrasamples=["unspecified"])
        case("tifffile", f"{name} a fourth channel that is no alpha", data, None, on_white(array[..., :3]))
    data = write(LA, extrasamples=["unassalpha"], photometric="minisblack", planarconfig="contig")
    case("tifffile", "grey and alpha", data, by_vips, on_white(LA))
    premultiplied = np.dstack([(GREY * (ALPHA / 255)).round().astype(np.uint8), ALPHA])
    data = write(premultiplied, extrasamples=["assocalpha"], photometric="minisblack", planarconfig="contig")
    case("tifffile", "grey and premultiplied alpha", data, None, on_white(LA), 2)
    data = write(LA16, extrasamples=["unassalpha"], photometric="minisblack", planarconfig="contig")
    case("tifffile", "16-bit grey and alpha", data, by_vips, on_white(LA16))
    table = np.zeros((3, 256), np.uint16)
    table[:, :16] = PALETTE.T.astype(np.uint16) * 257
    case("tifffile", "palette", write(INDICES, photometric="palette", colormap=table), by_tifffile, on_white(COLOURS))
    for bits in (8, 16):
        inks = CMYK if bits == 8 else CMYK.astype(np.uint16) * 257
        case("tifffile", f"CMYK {bits}", write(inks, photometric="separated"), by_tifffile, from_cmyk(CMYK), 1)
    for compression in ("packbits", "zstd", "webp", "jpeg", "jpeg2000", "jpegxl", "jpegxr", "lzma", "lerc", "png"):
        near = compression in ("webp", "jpeg", "jpegxr")
        options = {"compressionargs": {"level": 100 if compression == "webp" else 95}} if near else {}
        data = write(SMOOTH, compression=compression, **options)
        case("tifffile", compression, data, by_tifffile, on_white(SMOOTH), 8 if near else 1)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for array in (RGB, RGB[::-1]):
            writer.write(array, photometric="rgb")
    case("tifffile", "two pages", file.getvalue(), by_vips, on_white(RGB), 0)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB, photometric="rgb", subifds=1)
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
    case("tifffile", "a smaller image behind the first", file.getvalue(), by_vips, on_white(RGB), 0)
    mosaic = (33422, 1, 4, bytes((0, 1, 1, 2)), True)
    for name, extra, shape in (
        ("DNG", [(50706, 1, 4, bytes((1, 4, 0, 0)), True)], "cfa"),
        ("NEF, ARW and others", [(271, 2, 6, "NIKON", True)], "cfa"),
        ("a thumbnail first", [], "rgb"),
    ):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            writer.write(RGB[::2, ::2], photometric="rgb", subifds=1, subfiletype=1, extratags=extra)
            if shape == "cfa":
                writer.write(GREY16, photometric="cfa", extratags=[mosaic, (33421, 3, 2, (2, 2), True)])
            else:
                writer.write(RGB, photometric="rgb")
        refused("tifffile", name, file.getvalue())
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
        writer.write(RGB, photometric="rgb")
    refused("tifffile", "a thumbnail on the first page", file.getvalue())
    for kind in (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.uint32):
        refused("tifffile", f"{np.dtype(kind)} grey", write((GREY // 2).astype(kind)))
    refused("tifffile", "float32 RGB", write(RGB.astype(np.float32)))
    refused("tifffile", "int8 RGB", write((RGB // 2).astype(np.int8)))
    refused("tifffile", "int16 RGB", write((RGB16 // 2).astype(np.int16)))
    lab = np.stack([90 + 5 * _x, 2 * _y - 12, _x - 9], axis=-1).astype(np.int16)
    colours = skimage.color.lab2rgb(lab * np.array([100 / 255, 1, 1])) * 255
    case("tifffile", "CIELab", write(lab.astype(np.uint8), photometric="cielab"), None, colours, 4)


def vips_files() -> None:
    def image(array: np.ndarray) -> pyvips.Image:
        wide = array.dtype == np.uint16
        found = pyvips.Image.new_from_array(array)
        if np.atleast_3d(array).shape[-1] > 2:
            return found.copy(interpretation="rgb16" if wide else "srgb")
        return found.copy(interpretation="grey16" if wide else "b-w")

    def write(array: np.ndarray, suffix: str, **options: Any) -> bytes:
        return image(array).write_to_buffer(suffix, **options)

    arrays = {"grey": GREY, "LA": LA, "RGB": RGB, "RGBA": RGBA, "16-bit grey": GREY16, "16-bit LA": LA16}
    arrays |= {"16-bit RGB": RGB16, "16-bit RGBA": RGBA16}
    for name, array in arrays.items():
        exact = by_pypng if array.dtype == np.uint8 or array.ndim == 2 else by_torchvision
        reader = None if name.endswith("A") else exact
        case("libvips", f"PNG {name}", write(array, ".png"), reader, on_white(array))
        case("libvips", f"PNG interlaced {name}", write(array, ".png", interlace=True), reader, on_white(array))
        data = write(array, ".tif", compression="deflate", predictor="horizontal")
        case("libvips", f"TIFF {name}", data, by_tifffile if not name.endswith("A") else None, on_white(array), 2)
    for bits in (1, 2, 4):
        grey = np.repeat((GREY >> (8 - bits))[..., None] * (255 / (2**bits - 1)), 3, axis=-1)
        data = write(GREY, ".png", bitdepth=bits)
        case("libvips", f"PNG {bits} bits", data, by_pypng, grey, 255)
        case("libvips", f"TIFF {bits} bits", write(GREY, ".tif", bitdepth=bits), by_tifffile, grey, 255)
    case("libvips", "PNG palette", write(COLOURS, ".png", palette=True, Q=100), by_opencv, tolerance=0)
    case("libvips", "TIFF WhiteIsZero", write(GREY, ".tif", miniswhite=True), by_tifffile, on_white(GREY), 0)
    case(
        "libvips",
        "TIFF pyramid",
        write(
            np.tile(RGB, (12, 9, 1)),
            ".tif",
            pyramid=True,
            tile=True,
            tile_width=64,
            tile_height=64,
            compression="deflate",
        ),
        by_tifffile,
        on_white(np.tile(RGB, (12, 9, 1))),
        0,
    )
    bits_image = write((BITS * np.uint8(255)), ".tif", bitdepth=1, compression="ccittfax4")
    case("libvips", "TIFF group 4", bits_image, by_tifffile, on_white(BITS), 0)
    for mode in ("on", "off"):
        data = write(RGB, ".jpg", subsample_mode=mode, interlace=mode == "on")
        case("libvips", f"JPEG, subsampling {mode}", data, by_torchvision, tolerance=0)
    case("libvips", "JPEG optimised", write(RGB, ".jpg", optimize_coding=True, Q=60), by_opencv, tolerance=0)
    for options in ({"lossless": True}, {"Q": 70}, {"near_lossless": True}):
        for name in ("RGB", "RGBA"):
            data = write(arrays[name], ".webp", **options)
            case("libvips", f"WebP {name} {options}", data, by_opencv, tolerance=1)
    case("libvips", "GIF", write(COLOURS, ".gif"), by_opencv, tolerance=0)
    case("libvips", "GIF interlaced", write(COLOURS, ".gif", interlace=True), by_opencv, tolerance=0)
    for bits in (8, 10, 12):
        data = image(SMOOTH).heifsave_buffer(compression="av1", bitdepth=bits, Q=95, subsample_mode="off")
        case("libvips", f"AVIF {bits} bits", data, by_opencv, on_white(SMOOTH), 6)


def imagecodecs_files() -> None:
    codecs = imagecodecs
    for bits in (8, 10, 12, 16):
        for name, array in (("grey", GREY16), ("RGB", RGB16)):
            samples = (array >> (16 - bits)).astype(np.uint8 if bits == 8 else np.uint16)
            values = np.broadcast_to(np.atleast_3d(samples * (255 / (2**bits - 1))), (HEIGHT, WIDTH, 3))
            for codec in ("jp2", "j2k"):
                data = codecs.jpeg2k_encode(samples, bitspersample=bits, codecformat=codec, reversible=True, level=0)
                case("imagecodecs", f"JPEG 2000 {codec} {name} {bits}", data, None, values)
    for name, array in (("grey", GREY), ("RGB", RGB), ("RGBA", RGBA), ("16-bit RGB", RGB16), ("LA", LA)):
        case(
            "imagecodecs",
            f"PNG {name}",
            codecs.png_encode(array),
            by_opencv_exactly if name != "LA" else by_vips,
            on_white(array),
        )
        case(
            "imagecodecs",
            f"JPEG XL {name}",
            codecs.jpegxl_encode(array, lossless=True),
            by_imagecodecs("jpegxl"),
            on_white(array),
        )
    data = codecs.jpegxl_encode(SMOOTH, distance=0.3)
    case("imagecodecs", "JPEG XL lossy", data, by_imagecodecs("jpegxl"), on_white(SMOOTH), 8)
    for name, array in (("grey", GREY), ("RGB", RGB)):
        case("imagecodecs", f"BMP {name}", codecs.bmp_encode(array), by_opencv_exactly, on_white(array), 0)
    case("imagecodecs", "JPEG 2000 RGBA", codecs.jpeg2k_encode(RGBA, level=0, reversible=True), None, on_white(RGBA))
    for bits in (8, 10, 12):
        samples = (SMOOTH.astype(np.uint16) << (bits - 8)).astype(np.uint8 if bits == 8 else np.uint16)
        data = codecs.avif_encode(samples, level=98, bitspersample=bits, pixelformat="444")
        case("imagecodecs", f"AVIF {bits}", data, by_opencv, on_white(SMOOTH), 6)
    refused("imagecodecs", "JPEG, 12 bits", codecs.jpeg8_encode(RGB16 >> 4, bitspersample=12))
    for name, array in (("grey", GREY), ("RGB", RGB)):
        case(
            "imagecodecs",
            f"JPEG lossless {name}",
            codecs.jpeg8_encode(array, lossless=True),
            by_imagecodecs("jpeg8"),
            on_white(array),
            0,
        )
    refused("imagecodecs", "JPEG lossless, 16 bits", codecs.jpeg8_encode(GREY16, lossless=True, bitspersample=16))
    refused("imagecodecs", "JPEG XR", codecs.jpegxr_encode(RGB, level=1.0))
    refused("imagecodecs", "JPEG-LS", codecs.jpegls_encode(GREY))


def other_files() -> None:
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    for name, pixels, array in (("RGB", tensor, RGB), ("grey", torch.from_numpy(GREY)[None], GREY)):
        case("torchvision", f"PNG {name}", bytes(encode_png(pixels).numpy()), by_opencv_exactly, on_white(array), 0)
        case("torchvision", f"JPEG {name}", bytes(encode_jpeg(pixels).numpy()), by_vips, tolerance=0)

    def save(rows: np.ndarray, **options: Any) -> bytes:
        file = io.BytesIO()
        png.Writer(WIDTH, HEIGHT, **options).write(file, rows.reshape(HEIGHT, -1).tolist())
        return file.getvalue()

    for bits in (1, 2, 4, 8, 16):
        samples = GREY16 >> (16 - bits)
        grey = np.repeat(samples[..., None] * (255 / (2**bits - 1)), 3, axis=-1)
        for interlace in (False, True):
            data = save(samples, greyscale=True, bitdepth=bits, interlace=interlace)
            case("pypng", f"grey {bits} {'interlaced' if interlace else ''}", data, by_vips, grey)
        value = int(samples[4, 4])
        data = save(samples, greyscale=True, bitdepth=bits, transparent=value)
        case("pypng", f"grey {bits}, a clear value", data, by_vips, np.where((samples == value)[..., None], 255, grey))
    for bits, array in ((8, RGB), (16, RGB16)):
        clear = tuple(int(v) for v in array[2, 2])
        data = save(array, greyscale=False, bitdepth=bits, transparent=clear)
        pixels = np.where((array == array[2, 2]).all(axis=-1)[..., None], 255, on_white(array))
        if bits == 8:
            case("pypng", f"RGB {bits}, a clear colour", data, by_opencv_exactly, pixels)
        else:
            refused("pypng", f"RGB {bits}, a clear colour", data)
        for interlace in (False, True):
            data = save(array, greyscale=False, bitdepth=bits, interlace=interlace)
            case("pypng", f"RGB {bits} {'interlaced' if interlace else ''}", data, by_torchvision, on_white(array))
    for bits in (1, 2, 4, 8):
        most = min(16, 2**bits)
        colours = [(*(int(v) for v in colour), 255 - 80 * (number % 2)) for number, colour in enumerate(PALETTE[:most])]
        indices = INDICES % most
        case(
            "pypng",
            f"palette {bits}",
            save(indices, palette=[c[:3] for c in colours], bitdepth=bits),
            by_opencv,
            on_white(PALETTE[indices]),
            0,
        )
        data = save(indices, palette=colours, bitdepth=bits)
        case("pypng", f"palette and alpha {bits}", data, by_vips, on_white(np.array(colours, np.uint8)[indices]))
    case("pypng", "gamma", save(RGB, greyscale=False, gamma=0.3), by_torchvision, on_white(RGB), 0)
    case(
        "pypng", "background", save(RGBA, greyscale=False, alpha=True, background=(255, 0, 0)), by_vips, on_white(RGBA)
    )
    for suffix in (".png", ".bmp", ".tif", ".ppm", ".jpg", ".webp"):
        data = imageio.v3.imwrite("<bytes>", RGB, extension=suffix)
        case("imageio", suffix, data, by_opencv, tolerance=0)
    for suffix in (".png", ".tif"):
        path = Path(f"/tmp/images_sweep{suffix}")
        skimage.io.imsave(path, GREY16, check_contrast=False)
        case("scikit-image", f"16 bits {suffix}", path.read_bytes(), by_opencv_exactly, on_white(GREY16))
        path.unlink()
    for name, array in (("RGB", SMOOTH), ("RGBA", np.dstack([SMOOTH, ALPHA])), ("grey", SMOOTH_GREY)):
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(array)).save(file, quality=-1, chroma="444")
        case("pillow-heif", f"HEIC {name}", file.getvalue(), None, on_white(array), 4)


def numpy_files() -> None:
    bmp, tga, tiff, packed = raw_images.bmp, raw_images.tga, raw_images.tiff, raw_images.packed
    rgb, grey, colours = on_white(RGB), on_white(GREY), on_white(COLOURS)
    unused, opaque = np.dstack([RGB, 0 * GREY]), np.dstack([RGB, 0 * GREY + 255])
    bgrx = np.ascontiguousarray(unused[..., [2, 1, 0, 3]])
    flat = bgrx.reshape(HEIGHT, -1)
    case("NumPy", "BMP 32 bits", bmp(flat, 32), by_opencv, rgb, 0)
    case(
        "NumPy",
        "BMP 24 bits from the top",
        bmp(np.ascontiguousarray(RGB[..., ::-1]).reshape(HEIGHT, -1), 24, top_down=True),
        by_opencv,
        rgb,
        0,
    )
    case("NumPy", "BMP of OS/2", raw_images.bmp_core(RGB), None, rgb, 0)
    for bits in (1, 4, 8):
        indices = INDICES % min(16, 2**bits)
        rows = np.frombuffer(packed(indices, bits), np.uint8).reshape(HEIGHT, -1)
        if WIDTH * bits % 8 == 0:
            palette = np.zeros((2**bits, 3), np.uint8)
            palette[: min(16, 2**bits)] = PALETTE[: min(16, 2**bits)]
            case("NumPy", f"BMP palette {bits}", bmp(rows, bits, palette), by_opencv, on_white(PALETTE[indices]), 0)
    words = bgrx.view("<u4")[..., 0]
    for size in (40, 56, 108, 124):
        for alpha in (0, 0xFF000000):
            masks = (0xFF0000, 0xFF00, 0xFF, alpha)
            data = raw_images.bmp_with_masks(words, 32, masks, size if alpha == 0 else max(size, 56))
            case("NumPy", f"BMP masks {size} {alpha:x}, fourth byte 0", data, None, rgb, 0)
            data = raw_images.bmp_with_masks(words | np.uint32(0xFF000000), 32, masks, max(size, 56))
            case("NumPy", f"BMP masks {size} {alpha:x}, fourth byte 255", data, None, rgb, 0)
    five = (RGB >> 3).astype(np.uint16)
    half = five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]
    case("NumPy", "BMP 555", bmp(half.view(np.uint8).reshape(HEIGHT, -1), 16), by_opencv, tolerance=8)
    six = five[..., 0] << 11 | (RGB[..., 1].astype(np.uint16) >> 2) << 5 | five[..., 2]
    data = raw_images.bmp_with_masks(six, 16, (0xF800, 0x7E0, 0x1F, 0), 56)
    case(
        "NumPy",
        "BMP 565",
        data,
        None,
        np.dstack([five[..., 0] / 31, RGB[..., 1] // 4 / 63, five[..., 2] / 31]) * 255,
        5,
    )
    for name, array, bits in (
        ("24", RGB[..., ::-1], 24),
        ("32", opaque[..., [2, 1, 0, 3]], 32),
        ("32, unused", bgrx, 32),
    ):
        for descriptor, stored in (
            (0x20, array),
            (0x00, array[::-1]),
            (0x30, array[:, ::-1]),
            (0x10, array[::-1, ::-1]),
        ):
            case("NumPy", f"TGA {name} {descriptor:x}", tga(stored, 2, bits, descriptor), None, rgb, 0)
    case("NumPy", "TGA alpha", tga(RGBA[..., [2, 1, 0, 3]], 2, 32, 0x28), None, on_white(RGBA))
    case("NumPy", "TGA grey", tga(GREY, 3, 8, 0x20), None, grey, 0)
    case("NumPy", "TGA colour map", tga(INDICES, 1, 8, 0x20, PALETTE), None, colours, 0)
    case("NumPy", "TGA 16 bits", tga(half, 2, 16, 0x20), None, (five * (255 / 31)), 5)
    text = "\n".join(" ".join(str(v) for v in row) for row in RGB.reshape(HEIGHT, -1)).encode()
    case("NumPy", "PPM as text", b"P3\n# text\n%d %d\n255\n" % (WIDTH, HEIGHT) + text, None, rgb, 0)
    text = "\n".join(" ".join(str(v) for v in row) for row in BITS.astype(int) ^ 1).encode()
    case("NumPy", "PBM as text", b"P1\n%d %d\n" % (WIDTH, HEIGHT) + text, by_opencv, on_white(BITS), 0)
    for most in (15, 100, 1023, 4095, 65535):
        samples = (GREY16.astype(np.uint32) * most // 65535).astype(">u2" if most > 255 else np.uint8)
        data = b"P5 %d %d %d\n" % (WIDTH, HEIGHT, most) + samples.tobytes()
        case("NumPy", f"PGM up to {most}", data, None, np.repeat(samples[..., None] * (255 / most), 3, axis=-1))
        samples = (RGB16.astype(np.uint32) * most // 65535).astype(">u2" if most > 255 else np.uint8)
        data = b"P6 %d %d %d\n" % (WIDTH, HEIGHT, most) + samples.tobytes()
        case("NumPy", f"PPM up to {most}", data, None, samples * (255 / most))
    wide, size = {"t258": 16}, (WIDTH, HEIGHT)
    for order in ("<", ">"):
        kind = f"{order}u2"
        case(
            "NumPy",
            f"TIFF WhiteIsZero 16 {order}",
            tiff((~GREY16).astype(kind).tobytes(), *size, order, t262=0, **wide),
            by_tifffile,
            on_white(GREY16),
        )
        case("NumPy", f"TIFF WhiteIsZero 8 {order}", tiff((~GREY).tobytes(), *size, order, t262=0), by_vips, grey, 0)
        twelve = GREY16 >> 4
        case(
            "NumPy",
            f"TIFF 12 {order}",
            tiff(packed(twelve, 12), *size, order, t258=12),
            by_tifffile,
            np.repeat(twelve[..., None] * (255 / 4095), 3, axis=-1),
        )
    reverse = np.packbits(np.unpackbits(np.frombuffer(packed(BITS, 1), np.uint8)), bitorder="little").tobytes()
    case("NumPy", "TIFF lowest bit first", tiff(reverse, *size, t258=1, t266=2), by_vips, on_white(BITS), 0)
    for mode, planes in ((1, GREY[None]), (3, np.moveaxis(RGB, -1, 0)), (4, np.moveaxis(255 - CMYK, -1, 0))):
        pixels = {1: grey, 3: rgb, 4: from_cmyk(CMYK)}[mode]
        case("NumPy", f"PSD mode {mode}", raw_images.psd(planes, mode), None, pixels)
    refused("NumPy", "PSD 16 bits", raw_images.psd(np.moveaxis(RGB16, -1, 0), 3, 16))
    icon = np.pad(RGBA, ((0, 3), (0, 0), (0, 0)))[:, :16]
    icon[..., 3] = 255
    none = np.zeros((16, 16), bool)
    case("NumPy", "ICO", raw_images.ico(icon, none), None, on_white(icon), 0)
    case(
        "NumPy",
        "ICO without alpha",
        raw_images.ico(icon * np.array([1, 1, 1, 0], np.uint8), none),
        None,
        on_white(icon),
        0,
    )
    jpeg = by_pillow_write(SMOOTH, "JPEG", quality=95)
    for name, start in (
        ("RAF", b"FUJIFILMCCD-RAW 0201"),
        ("ORF", b"IIRO\x08\0\0\0"),
        ("RW2", b"IIU\0\x18\0\0\0"),
        ("CR3", struct.pack(">I", 24) + b"ftypcrx \0\0\0\1crx isom"),
        ("CR2", b"II*\0\x10\0\0\0CR\2\0" + bytes(4)),
    ):
        refused("NumPy", f"{name}, a camera raw", start + bytes(64) + jpeg)


def main() -> None:
    for write in (
        pillow_files,
        opencv_files,
        tifffile_files,
        vips_files,
        imagecodecs_files,
        other_files,
        numpy_files,
    ):
        write()
    names = [one["name"] for one in cases]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    for one, data in zip(cases, files, strict=True):
        one["bytes"] = len(data)
    path = Path(__file__).with_name("images_sweep.npz")
    np.savez_compressed(
        path,
        cases=np.array(json.dumps(cases)),
        files=np.frombuffer(b"".join(files), np.uint8),
        pixels=np.concatenate([pixels.ravel() for pixels in expected]),
    )
    print(f"{path.name}: {len(cases)} files, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
