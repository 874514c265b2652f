"""Image files put together byte by byte with NumPy, for variants that few libraries write."""

import struct
import zlib

import numpy as np


def bmp(rows: np.ndarray, bits: int, palette: np.ndarray | None = None, top_down: bool = False) -> bytes:
    """A BMP with a 40-byte header; `rows` are the packed bytes [H, bytes] of each row from the top."""
    height, width = rows.shape[0], rows.shape[1] * 8 // bits
    stride = -(-rows.shape[1] // 4) * 4
    body = np.zeros((height, stride), np.uint8)
    body[:, : rows.shape[1]] = rows if top_down else rows[::-1]
    table = b"" if palette is None else np.dstack([palette[None, :, ::-1], np.zeros((1, len(palette), 1))])
    table = table if isinstance(table, bytes) else table.astype(np.uint8).tobytes()
    offset = 54 + len(table)
    header = struct.pack("<2sIHHI", b"BM", offset + body.size, 0, 0, offset)
    header += struct.pack(
        "<IiiHHIIiiII",
        40,
        width,
        -height if top_down else height,
        1,
        bits,
        0,
        body.size,
        2835,
        2835,
        len(table) // 4,
        0,
    )
    return header + table + body.tobytes()


def bmp_with_masks(pixels: np.ndarray, bits: int, masks: tuple[int, int, int, int], header_size: int) -> bytes:
    """A BMP whose `masks` say where the channels of `pixels`, unsigned integers [H, W], are."""
    body = np.ascontiguousarray(pixels[::-1]).tobytes()
    # The masks follow a header of 40 bytes, and belong to longer ones.
    offset = 14 + max(header_size, 52)
    header = struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset)
    header += struct.pack("<IiiHHIIiiII", header_size, *pixels.shape[::-1], 1, bits, 3, len(body), 2835, 2835, 0, 0)
    header += struct.pack("<IIII", *masks)
    return header[:offset].ljust(offset, b"\0") + body


def bmp_core(pixels: np.ndarray) -> bytes:
    """A BMP with the 12-byte header of OS/2, of BGR pixels [H, W, 3]."""
    height, width = pixels.shape[:2]
    stride = -(-width * 3 // 4) * 4
    body = np.zeros((height, stride), np.uint8)
    body[:, : width * 3] = pixels[::-1, :, ::-1].reshape(height, -1)
    header = struct.pack("<2sIHHI", b"BM", 26 + body.size, 0, 0, 26)
    return header + struct.pack("<IHHHH", 12, width, height, 1, 24) + body.tobytes()


def tga(body: np.ndarray, kind: int, bits: int, descriptor: int, colours: np.ndarray | None = None) -> bytes:
    """A TGA of samples [H, W, ...] in the order of the file, with `colours` as an RGB colour map."""
    height, width = body.shape[:2]
    count = 0 if colours is None else len(colours)
    header = struct.pack(
        "<BBBHHBHHHHBB", 0, count > 0, kind, 0, count, 24 * (count > 0), 0, 0, width, height, bits, descriptor
    )
    table = b"" if colours is None else np.ascontiguousarray(colours[:, ::-1]).tobytes()
    return header + table + np.ascontiguousarray(body).tobytes()


def tiff(rows: bytes, width: int, height: int, order: str = "<", **tags: int | tuple[int, ...] | bytes) -> bytes:
    """An uncompressed TIFF of one strip. `tags` are named t262, t258 and so on; they override the defaults of grey."""
    values: dict[int, int | tuple[int, ...] | bytes] = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1}
    values |= {278: height, 279: len(rows)} | {int(name[1:]): value for name, value in tags.items()}
    start = 8 + 2 + 12 * (len(values) + 1) + 4
    entries, extra = b"", b""
    values[273] = 0
    for tag in sorted(values):
        value = values[tag]
        if isinstance(value, bytes):
            kind, count, packed = 1, len(value), value
        else:
            numbers = value if isinstance(value, tuple) else (value,)
            kind = 4 if tag in (254, 273, 279, 330) else 3
            count, packed = len(numbers), struct.pack(f"{order}{len(numbers)}{'I' if kind == 4 else 'H'}", *numbers)
        if tag == 273:
            packed = struct.pack(f"{order}I", 0xFFFFFFF0)
        if len(packed) > 4:
            extra += b"\0" * (len(extra) % 2)
            packed, extra = struct.pack(f"{order}I", start + len(extra)), extra + packed
        entries += struct.pack(f"{order}HHI", tag, kind, count) + packed.ljust(4, b"\0")
    entries = entries.replace(struct.pack(f"{order}I", 0xFFFFFFF0), struct.pack(f"{order}I", start + len(extra)))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(values)) + entries + struct.pack(f"{order}I", 0) + extra + rows


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Samples [H, W] with the highest bit first, each row in whole bytes."""
    planes = (samples[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(samples), -1).astype(bool), axis=1).tobytes()


def png_with(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with another chunk behind its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


def psd(planes: np.ndarray, mode: int, bits: int = 8) -> bytes:
    """A PSD without layers: planes [C, H, W], colour mode 1 (grey), 3 (RGB) or 4 (CMYK), uncompressed."""
    channels, height, width = planes.shape
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, channels, height, width, bits, mode)
    return header + bytes(12) + b"\0\0" + planes.astype(">u2" if bits == 16 else np.uint8).tobytes()


def ico(pixels: np.ndarray, mask: np.ndarray) -> bytes:
    """An icon of RGBA pixels [H, W, 4], with a mask [H, W] that is true where the icon is clear."""
    height, width = mask.shape
    rows = np.packbits(mask[::-1], axis=1)
    stride = -(-rows.shape[1] // 4) * 4
    bits = np.zeros((height, stride), np.uint8)
    bits[:, : rows.shape[1]] = rows
    body = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0)
    body += np.ascontiguousarray(pixels[::-1, :, [2, 1, 0, 3]]).tobytes() + bits.tobytes()
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, width, height, 0, 0, 1, 32, len(body), 22) + body


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def after_start(data: bytes, *inserted: bytes) -> bytes:
    """A JPEG with other segments behind its first marker."""
    return data[:2] + b"".join(inserted) + data[2:]
