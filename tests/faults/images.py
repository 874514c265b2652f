"""Damaged images of 25 kinds, in a folder: read right, or refused with path and reason."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageOps

from jaxnets.data.decoding import open_image, pixels_of
from jaxnets.data.folder import named_images
from jaxnets.data.verification import judge, usable
from jaxnets.errors import InputError
from tests.faults.group import Group

_SHAPE = (37, 53)
_START_OF_SCAN = b"\xff\xda"


@cache
def _good(file_format: str, mode: str = "RGB", **options: Any) -> bytes:
    y, x = np.mgrid[: _SHAPE[0], : _SHAPE[1]]
    pixels = np.stack([4 * x + 30, 6 * y, 2 * x + 3 * y], axis=-1) + np.random.default_rng(0).integers(
        0, 25, (*_SHAPE, 3)
    )
    image = Image.fromarray(pixels.astype(np.uint8))
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _flipped(data: bytes, places: range, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        changed[chance.choice(places)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _head(data: bytes, chance: random.Random) -> bytes:
    return _flipped(data, range(min(len(data), 200)), chance)


def _body(data: bytes, chance: random.Random) -> bytes:
    return _flipped(data, range(len(data) // 3, len(data)), chance)


def _restarts(chance: random.Random) -> bytes:
    """A JPEG with a restart marker of a wrong number, or without it."""
    data = bytearray(_good("JPEG", restart_marker_blocks=2))
    start = data.index(_START_OF_SCAN)
    markers = [at for at in range(start, len(data) - 1) if data[at] == 0xFF and data[at + 1] in range(0xD0, 0xD8)]
    at = chance.choice(markers[:-4])
    if chance.random() < 0.5:
        data[at + 1] = 0xD0 + (data[at + 1] - 0xD0 + chance.randint(2, 6)) % 8
    else:
        del data[at : at + 2]
    return bytes(data)


def _huge_png(chance: random.Random) -> bytes:
    header = b"IHDR" + struct.pack(
        ">IIBBBBB", chance.randint(20_000, 60_000), chance.randint(20_000, 60_000), 8, 2, 0, 0, 0
    )
    good = _good("PNG")
    return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]


def _huge_jpeg(chance: random.Random) -> bytes:
    data = bytearray(_good("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", chance.randint(20_000, 60_000), chance.randint(20_000, 60_000))
    return bytes(data)


def _wrong_crc(chance: random.Random) -> bytes:
    good = _good("PNG")
    return _flipped(good, range(good.index(b"IEND") - 8, good.index(b"IEND") - 4), chance)


def _exif(chance: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = chance.randint(0, 12)
    return _good("JPEG", exif=exif.tobytes()) if chance.random() < 0.5 else _good("PNG", exif=exif.tobytes())


def _sized(size: tuple[int, int], chance: random.Random) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 100, chance.randrange(256))).save(file, chance.choice(("PNG", "JPEG", "BMP", "WEBP")))
    return file.getvalue()


# Kind -> the file's suffix, and its content. Of `_WHOLE`, what is accepted has to be the undamaged image.
_KINDS: dict[str, tuple[str, Any]] = {
    "JPEG cut": ("jpg", lambda c: _cut(_good("JPEG"), c)),
    "JPEG without its end": ("jpg", lambda c: _good("JPEG")[: -c.randint(1, 40)]),
    "JPEG with bits of its header flipped": ("jpg", lambda c: _head(_good("JPEG"), c)),
    "JPEG with bits of its data flipped": ("jpg", lambda c: _body(_good("JPEG"), c)),
    "JPEG with damaged restart markers": ("jpg", _restarts),
    "progressive JPEG cut": ("jpg", lambda c: _cut(_good("JPEG", progressive=True), c)),
    "JPEG with trailing garbage": ("jpg", lambda c: _good("JPEG") + c.randbytes(c.randint(1, 500))),
    "JPEG of a huge size": ("jpg", _huge_jpeg),
    "CMYK JPEG cut": ("jpg", lambda c: _cut(_good("JPEG", "CMYK"), c)),
    "PNG cut": ("png", lambda c: _cut(_good("PNG"), c)),
    "PNG with a wrong CRC": ("png", _wrong_crc),
    "PNG with bits flipped": ("png", lambda c: _flipped(_good("PNG"), range(len(_good("PNG"))), c)),
    "PNG of a huge size": ("png", _huge_png),
    "PNG with alpha cut": ("png", lambda c: _cut(_good("PNG", "RGBA"), c)),
    "PNG of 16 bits cut": ("png", lambda c: _cut(_good("PNG", "I;16"), c)),
    "PNG with a palette, bits flipped": ("png", lambda c: _body(_good("PNG", "P"), c)),
    "GIF cut": ("gif", lambda c: _cut(_good("GIF", "P"), c)),
    "WebP cut or flipped": ("webp", lambda c: c.choice((_cut, _body))(_good("WEBP"), c)),
    "BMP cut or flipped": ("bmp", lambda c: c.choice((_cut, _head))(_good("BMP"), c)),
    "TIFF cut or flipped": ("tif", lambda c: c.choice((_cut, _head))(_good("TIFF"), c)),
    "another format's suffix": (
        "jpg",
        lambda c: _good(c.choice(("PNG", "GIF", "BMP", "TIFF", "WEBP")), c.choice(("RGB", "L"))),
    ),
    "an odd orientation": ("jpg", _exif),
    "one pixel wide or high": ("png", lambda c: _sized(c.choice(((1, 1), (1, 90), (90, 1))), c)),
    "nothing, zeros or noise": (
        "jpg",
        lambda c: c.choice((b"", bytes(c.randint(1, 999)), c.randbytes(c.randint(1, 999)))),
    ),
    "text": ("png", lambda c: c.choice(("<html>404</html>", "version https://git-lfs", "GIF", "\xff\xd8")).encode()),
}
_WHOLE = {
    "JPEG cut": "JPEG",
    "JPEG without its end": "JPEG",
    "JPEG with damaged restart markers": "JPEG",
    "JPEG with trailing garbage": "JPEG",
    "PNG cut": "PNG",
}


def _as_pillow(data: bytes) -> np.ndarray:
    """The pixels as Pillow reads them: upright, on white."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        image: Image.Image = opened
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return np.repeat((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        if not image.has_transparency_data:
            return np.asarray(image.convert("RGB"))
        image = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def _run(case: int, folder: Path) -> dict[str, int]:
    chance, kind = random.Random(case), list(_KINDS)[case // 20 % len(_KINDS)]
    suffix, damaged = _KINDS[kind]
    path = folder / f"image.{suffix}"
    path.write_bytes(data := damaged(chance))
    source, bad, _ = usable(named_images([folder]), 1, lambda count: None)
    try:
        judge(bad, 1, "error", lambda line: None)
    except InputError as error:
        assert str(path) in str(error), str(error)
        assert str(error).isprintable(), str(error)
        (image,) = bad
        assert image.reason
        assert not len(source)
        try:
            pixels_of(open_image(data))
        except InputError as reason:
            assert str(reason) == image.reason, (str(reason), image.reason)
            return {"refused with path and reason": 1}
        raise AssertionError(f"{kind}: refused by the check ({image.reason}), but read") from None
    actual = pixels_of(open_image(data)).copy()
    good = data
    if kind in _WHOLE:
        good = _good(_WHOLE[kind], restart_marker_blocks=2) if "restart" in kind else _good(_WHOLE[kind])
    expected = _as_pillow(good)
    assert actual.shape == expected.shape, (kind, actual.shape, expected.shape)
    assert np.abs(actual.astype(int) - expected).max() <= 2, kind
    return {"read right": 1}


@contextmanager
def _unguarded() -> Iterator[None]:
    """JPEGs are read by Pillow, which passes over damage, and nothing looks for it."""
    with ExitStack() as patches:
        patches.enter_context(patch("jaxnets.data.decoding.parse_jpeg", lambda data: None))
        patches.enter_context(patch("jaxnets.data.formats.check_samples", lambda data, colorspace: ""))
        yield


GROUP = Group(
    fault="1,000 damaged images of 25 kinds",
    promise="read right (as Pillow reads them, or as before the damage), or refused with path and reason",
    cases=1000,
    run=_run,
    unguarded=_unguarded,
    telling=tuple(range(80, 90)),
)
