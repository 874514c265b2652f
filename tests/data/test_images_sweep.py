"""Each of some 480 files by ten writers is read as other libraries read it, or refused in one line."""

import importlib.util
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from jaxnets.data.cropping import crop_into
from jaxnets.data.decoding import check_image, open_image, pixels_of
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError

# pytest shows this warning of Pillow in spite of the filter in `jaxnets.data.formats`.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")
PLUGINS = {"JPEG XL": ("pillow_jxl", "jxl"), "HEIC": ("pillow_heif", "heif")}
# Files that other libraries read, and Pillow does not.
REFUSED = frozenset(
    f"tifffile: {name}"
    for name in (
        *(f"{kind} > {{'bigtiff': True}}" for kind in ("8-bit grey", "16-bit grey", "8-bit RGB", "16-bit RGB")),
        *("16-bit planes {}", "16-bit planes {'rowsperstrip': 4}", "16-bit grey and alpha"),
        *("WhiteIsZero 16 > {}", "WhiteIsZero 16 > {'compression': 'zlib'}"),
        *("10 bits", "14 bits", *(f"WhiteIsZero {bits} bits" for bits in (10, 12, 14))),
        *("webp", "jpeg2000", "jpegxl", "jpegxr", "lerc", "png"),
    )
) | {"libvips: TIFF 16-bit LA", "NumPy: TIFF WhiteIsZero 16 >", "NumPy: TIFF 12 >"}


@cache
def sweep() -> dict[str, tuple[bytes, np.ndarray, float]]:
    """Name -> file, expected pixels (empty where the file has to be refused) and tolerance."""
    with np.load(Path(__file__).parents[1] / "references" / "images_sweep.npz") as stored:
        cases, files, pixels = json.loads(str(stored["cases"])), stored["files"].tobytes(), stored["pixels"]
    found, start, first = {}, 0, 0
    for case in cases:
        end, last = start + case["bytes"], first + int(np.prod(case["shape"]))
        found[case["name"]] = (files[start:end], pixels[first:last].reshape(case["shape"]), case["tolerance"])
        start, first = end, last
    assert (start, first) == (len(files), len(pixels))
    return found


def of_writer(writer: str) -> dict[str, tuple[bytes, np.ndarray, float]]:
    return {name: case for name, case in sweep().items() if name.startswith(f"{writer}:")}


WRITERS = sorted({name.split(":")[0] for name in sweep()})


def attempt(read: Any) -> np.ndarray | str:
    """The pixels, or the reason of the refusal, which is one line."""
    try:
        return read().copy()
    except InputError as error:
        reason = str(error)
        assert reason.isprintable(), reason
        return reason


def missing_plugin(name: str) -> str:
    """The extra that the file needs and that is not installed."""
    for file_format, (module, extra) in PLUGINS.items():
        if file_format in name and importlib.util.find_spec(module) is None:
            return extra
    return ""


def test_the_sweep_has_200_files_of_four_writers() -> None:
    assert len(sweep()) >= 200
    assert len(WRITERS) >= 4


@pytest.mark.parametrize("writer", WRITERS)
def test_each_file_is_read_as_others_read_it_or_refused(writer: str, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = {}
    for name, (data, expected, tolerance) in of_writer(writer).items():
        actual = attempt(lambda data=data: pixels_of(open_image(data)))
        checked = attempt(lambda data=data: np.array(check_image(data)))
        assert isinstance(actual, str) == isinstance(checked, str), name
        if extra := missing_plugin(name):
            if not isinstance(actual, str) or f"jaxnets[{extra}]" not in actual:
                wrong[name] = str(actual)
        elif not expected.size or name in REFUSED or ("AVIF" in name and not features.check("avif")):
            if not isinstance(actual, str):
                wrong[name] = "not refused"
        elif isinstance(actual, str):
            wrong[name] = actual
        elif actual.shape != expected.shape:
            wrong[name] = f"{actual.shape} instead of {expected.shape}"
        # The expected pixels are rounded, too.
        elif (difference := np.abs(actual - expected.astype(float)).max()) > tolerance + (tolerance > 0) * 0.5:
            wrong[name] = f"differs by {difference}"
    assert not wrong, "\n".join(f"{name}: {reason}" for name, reason in wrong.items())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("writer", WRITERS)
def test_all_paths_give_the_same_pixels(writer: str) -> None:
    for name, (data, expected, _) in of_writer(writer).items():
        if not expected.size or missing_plugin(name) or name in REFUSED:
            continue
        whole = pixels_of(open_image(data)).copy()
        np.testing.assert_array_equal(pixels_of(open_image(data), (2, 3, 7, 9)), whole[2:9, 3:12], name)
        crop, same = (np.empty((8, 8, 3), np.uint8) for _ in range(2))
        crop_into(crop, data, 0.5, np.full(22, 0.4))
        crop_into(same, np.ascontiguousarray(whole), 0.5, np.full(22, 0.4))
        np.testing.assert_array_equal(crop, same, name)
        preprocessing = Preprocessing(8, 9)
        np.testing.assert_array_equal(preprocessing.pixels(data), preprocessing.pixels(whole), name)
        if not any(file_format in name for file_format in PLUGINS):
            with Image.open(io.BytesIO(data)) as image:
                np.testing.assert_array_equal(pixels_of(open_image(image)), whole, name)
