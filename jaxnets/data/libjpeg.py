"""Decodes a part of a JPEG with the libjpeg-turbo that Pillow's wheels for Linux contain.

simplejpeg and Pillow decode all columns, and all rows above a part. libjpeg-turbo can leave most of their work out. Its
functions report an error by a function that must not return, so a small function that LLVM compiles calls them.
"""

import ctypes
import io
import platform
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from jaxnets.ops.cpu.machine_code import compile_text

_FUNCTIONS = (
    *("jpeg_std_error", "jpeg_CreateDecompress", "jpeg_mem_src", "jpeg_read_header", "jpeg_start_decompress"),
    *("jpeg_crop_scanline", "jpeg_skip_scanlines", "jpeg_read_scanlines", "jpeg_destroy_decompress"),
)
# The places and sizes are those of libjpeg 6.2's structures on x86-64, whose size the library itself checks.
# A longjmp from the error function ends decoding.
_CODE = """
declare i32 @_setjmp(ptr) returns_twice
declare void @longjmp(ptr, i32) noreturn

define void @failed(ptr %decoder) {{
  %errors = load ptr, ptr %decoder
  %jump = getelementptr i8, ptr %errors, i64 168
  call void @longjmp(ptr %jump, i32 1)
  unreachable
}}

define void @silent(ptr %decoder) {{
  ret void
}}

define i32 @decode_part(ptr %data, i64 %size, i32 %reduction, i32 %top, i32 %left, i32 %rows, i32 %columns,
                        ptr %target, i64 %stride) {{
  %decoder = alloca [632 x i8], align 16
  %errors = alloca [512 x i8], align 16
  %x = alloca i32
  %width = alloca i32
  %line = alloca ptr
  call void @llvm.memset.p0.i64(ptr %decoder, i8 0, i64 632, i1 false)
  call ptr {jpeg_std_error}(ptr %errors)
  store ptr %errors, ptr %decoder
  store ptr @failed, ptr %errors
  %output = getelementptr i8, ptr %errors, i64 16
  store ptr @silent, ptr %output
  %jump = getelementptr i8, ptr %errors, i64 168
  %again = call i32 @_setjmp(ptr %jump) returns_twice
  %fine = icmp eq i32 %again, 0
  br i1 %fine, label %begin, label %broken

broken:
  call void {jpeg_destroy_decompress}(ptr %decoder)
  ret i32 0

begin:
  call void {jpeg_CreateDecompress}(ptr %decoder, i32 62, i64 632)
  call void {jpeg_mem_src}(ptr %decoder, ptr %data, i64 %size)
  call i32 {jpeg_read_header}(ptr %decoder, i32 1)
  %colours = getelementptr i8, ptr %decoder, i64 64
  store i32 2, ptr %colours
  %divisor = getelementptr i8, ptr %decoder, i64 72
  store i32 %reduction, ptr %divisor
  call i32 {jpeg_start_decompress}(ptr %decoder)
  store i32 %left, ptr %x
  store i32 %columns, ptr %width
  call void {jpeg_crop_scanline}(ptr %decoder, ptr %x, ptr %width)
  %begins = load i32, ptr %x
  %same_begin = icmp eq i32 %begins, %left
  %has = load i32, ptr %width
  %same_width = icmp eq i32 %has, %columns
  %same = and i1 %same_begin, %same_width
  br i1 %same, label %skip, label %broken

skip:
  call i32 {jpeg_skip_scanlines}(ptr %decoder, i32 %top)
  br label %next

next:
  %row = phi i32 [0, %skip], [%following, %read]
  %more = icmp ult i32 %row, %rows
  br i1 %more, label %read, label %end

read:
  %number = zext i32 %row to i64
  %offset = mul i64 %number, %stride
  %place = getelementptr i8, ptr %target, i64 %offset
  store ptr %place, ptr %line
  %lines = call i32 {jpeg_read_scanlines}(ptr %decoder, ptr %line, i32 1)
  %following = add i32 %row, %lines
  %stuck = icmp eq i32 %lines, 0
  br i1 %stuck, label %broken, label %next

end:
  %count = getelementptr i8, ptr %errors, i64 128
  %warnings = load i64, ptr %count
  %clean = icmp eq i64 %warnings, 0
  call void {jpeg_destroy_decompress}(ptr %decoder)
  %result = zext i1 %clean to i32
  ret i32 %result
}}

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""
_Code = Callable[..., int]
_lock = threading.Lock()


def decode_part(data: bytes, reduction: int, top: int, left: int, pixels: np.ndarray) -> bool:
    """Fills `pixels`, uint8 [H, W, 3] and contiguous, with the part of a reduced JPEG from row `top`, column `left` on.

    The columns at the sides of the part differ from those of the whole image, as chroma lacks neighbours. Returns False
    if that is impossible or the JPEG is damaged. `left` is a multiple of 32.
    """
    code = _code()
    if code is None:
        return False
    rows, columns = pixels.shape[:2]
    address = pixels.__array_interface__["data"][0]
    return bool(code(data, len(data), reduction, top, left, rows, columns, address, 3 * columns))


@cache
def _tested() -> _Code | None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    paths = list((Path(PIL.__file__).parents[1] / "pillow.libs").glob("libjpeg-*.so*"))
    if len(paths) != 1:
        return None
    try:
        library = ctypes.CDLL(str(paths[0]))
        addresses = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _FUNCTIONS}
        text = _CODE.format(**{name: f"inttoptr (i64 {address} to ptr)" for name, address in addresses.items()})
        numbers = [ctypes.c_int] * 5
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, *numbers, ctypes.c_void_p, ctypes.c_size_t
        )
        code = kind(compile_text("decode_part", text))
        _test(code)
    except Exception as error:
        reason = " ".join(str(error).split())
        message = (
            f"JPEGs are decoded whole, which is slower: the test of parts failed ({type(error).__name__}: {reason})"
        )
        warnings.warn_explicit(message, UserWarning, "jaxnets", 1)
        return None
    return code


def _code() -> _Code | None:
    with _lock:
        return _tested()


def _test(code: _Code) -> None:
    """Compares a part with Pillow's pixels, and lets a file without an image fail."""
    file = io.BytesIO()
    scene = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(scene).resize((120, 90)).save(file, "JPEG")
    data, part = file.getvalue(), np.zeros((30, 70, 3), np.uint8)
    good = code(data, len(data), 1, 40, 32, 30, 70, part.ctypes.data, 210)
    expected = np.asarray(Image.open(file).convert("RGB"))[40:70, 32:102]
    if not good or not np.array_equal(part[:, 2:-2], expected[:, 2:-2]):
        raise ValueError("its pixels are not those of Pillow")
    if code(data[:20], 20, 1, 0, 0, 30, 70, part.ctypes.data, 210):
        raise ValueError("it takes a file without an image")
    if code(data[:-99], len(data) - 99, 1, 80, 0, 10, 70, part.ctypes.data, 210):
        raise ValueError("it takes a damaged file")
