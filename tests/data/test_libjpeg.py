"""Parts of JPEGs decoded by Pillow's libjpeg-turbo: pixels of the whole image, and no harm from damaged files."""

import io
import platform

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxnets.data import jpeg as decoder
from jaxnets.data import libjpeg
from jaxnets.data.decoding import open_image, pixels_of
from jaxnets.data.jpeg import Jpeg, decode_region
from tests.data.photos import PHOTOS

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the structures' sizes are those of x86-64"
)


def scene() -> np.ndarray:
    return np.asarray(Image.open(PHOTOS["coffee"]).convert("RGB").resize((211, 157)))


def jpeg_of(mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene()).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


FILES = {
    "4:2:0": jpeg_of(),
    "4:2:2": jpeg_of(subsampling="4:2:2"),
    "4:4:4": jpeg_of(subsampling="4:4:4", quality=97),
    **{name: simplejpeg.encode_jpeg(scene(), colorsubsampling=name) for name in ("411", "440")},
    "grey": jpeg_of("L"),
    "optimised": jpeg_of(optimize=True),
}


def parsed(data: bytes) -> Jpeg:
    opened = open_image(data)
    assert isinstance(opened, Jpeg)
    return opened


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_any_region_is_that_of_the_whole_image(kind: str, reduction: int) -> None:
    image = Image.open(io.BytesIO(FILES[kind]))
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    whole = np.asarray(image.convert("RGB"))
    rows, columns = whole.shape[:2]
    jpeg = parsed(FILES[kind])

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
        height, width = data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, columns - left))
        region = decode_region(jpeg, reduction, top, left, height, width)
        assert region is not None
        np.testing.assert_array_equal(region, whole[top : top + height, left : left + width])

    check()


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}])
def test_other_files_are_left_to_simplejpeg(options: dict[str, object]) -> None:
    assert decode_region(parsed(jpeg_of(**options)), 1, 50, 50, 40, 40) is None


def test_damage_above_the_end_of_a_region_leaves_it_to_simplejpeg() -> None:
    data = FILES["4:2:0"]
    middle = len(data) // 2
    broken = parsed(data[:middle] + b"\xff\xd0" + data[middle + 2 :])
    assert decode_region(broken, 1, 120, 0, 30, 50) is None
    cut = parsed(data[:middle])
    assert decode_region(cut, 1, 120, 0, 30, 50) is None
    # The blocks above are whole.
    np.testing.assert_array_equal(decode_region(cut, 1, 0, 0, 30, 50), decode_region(parsed(data), 1, 0, 0, 30, 50))


def test_random_damage_never_crashes() -> None:
    random = np.random.default_rng(0)
    taken = refused = 0
    for data in FILES.values():
        for _ in range(150):
            changed = bytearray(data)
            for _ in range(int(random.integers(1, 5))):
                reach = len(changed) if random.random() < 0.5 else 600
                changed[int(random.integers(2, reach))] = int(random.integers(256))
            pixels = np.zeros((60, 100, 3), np.uint8)
            done = libjpeg.decode_part(bytes(changed), 1, 40, 32, pixels)
            taken, refused = taken + done, refused + (not done)
    assert taken > 50
    assert refused > 50


def test_without_the_library_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg, box = parsed(FILES["4:2:0"]), (40, 50, 60, 70)
    usual = pixels_of(jpeg, box).copy()
    monkeypatch.setattr(libjpeg, "_tested", lambda: None)
    assert decode_region(jpeg, 1, *box) is None
    np.testing.assert_array_equal(pixels_of(jpeg, box), usual)
    monkeypatch.undo()
    monkeypatch.setattr(decoder, "decode_jpeg", lambda *_: pytest.fail("the whole image was decoded"))
    np.testing.assert_array_equal(pixels_of(jpeg, box), usual)


def test_a_library_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libjpeg, "_CODE", libjpeg._CODE.replace("i32 62, i64 632", "i32 62, i64 640"))
    with pytest.warns(UserWarning, match="JPEGs are decoded whole"):
        assert libjpeg._tested.__wrapped__() is None
