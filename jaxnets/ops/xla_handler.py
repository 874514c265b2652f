"""Python functions as XLA's custom calls on the CPU, without a copy of their arrays.

XLA calls a handler through a C interface that it keeps stable (jaxlib's include/xla/ffi/api/c_api.h); here that
interface is spelt in ctypes, as far as needed: addresses of arrays, and one attribute, the text "call". Programs with
such calls can be kept in the compilation cache, unlike those with `jax.pure_callback`.
"""

import _thread
import ctypes
import opcode
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import jax

_METADATA_EXTENSION = 1
_EXECUTE_STAGE = 3
_INTERNAL_ERROR = 13


class _ApiVersion(Structure):
    _fields_ = [("struct_size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int)]


class _ErrorArguments(Structure):
    _fields_ = [("struct_size", c_size_t), ("extension", c_void_p), ("message", c_char_p), ("code", c_int)]


_CreateError = ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorArguments))


class _Api(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("version", _ApiVersion),
        ("internal", c_void_p),
        ("create_error", _CreateError),
    ]


class _Metadata(Structure):
    _fields_ = [("struct_size", c_size_t), ("version", _ApiVersion)]


class _Extension(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    ]


class _Buffer(Structure):
    _fields_ = [("struct_size", c_size_t), ("extension", c_void_p), ("dtype", c_int), ("data", c_void_p)]


class _Buffers(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("buffers", POINTER(POINTER(_Buffer))),
    ]


class _Text(Structure):
    _fields_ = [("data", c_void_p), ("size", c_size_t)]


class _Attributes(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("names", c_void_p),
        ("texts", POINTER(POINTER(_Text))),
    ]


class _Frame(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    ]


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
_registered: list[object] = []  # XLA keeps addresses alone, so the handlers must live as long as the process
_threads = threading.local()


def register(target: str, function: Callable[[str, Sequence[int]], None]) -> None:
    """Makes `target` a custom call that runs `function` on its attribute `call` and its arrays' addresses.

    Arguments come first, then results. An exception fails the program with its text. It may run on several threads, and
    small programs run it on the main one, where a signal may interrupt it, as from Ctrl-C: XLA would take that for
    success, so `function` then runs anew, which must do no harm, and what the signal raised is raised after the call.
    """

    def run(frame: _Frame) -> int | None:
        if frame.extension and frame.extension.contents.type == _METADATA_EXTENSION:
            version, own = frame.extension.contents.metadata.contents.version, frame.api.contents.version
            version.major, version.minor = own.major, own.minor
            return None
        if frame.stage != _EXECUTE_STAGE:
            return None
        _keep_thread_state()
        try:
            text = frame.attributes.texts[0].contents
            addresses = [
                side.buffers[i].contents.data for side in (frame.arguments, frame.results) for i in range(side.size)
            ]
            function(ctypes.string_at(text.data, text.size).decode(), addresses)
        except Exception as error:
            arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, f"{target}: {error}".encode())
            arguments.code = _INTERNAL_ERROR
            return frame.api.contents.create_error(ctypes.byref(arguments))
        return None

    def handle(frame_pointer: "ctypes._Pointer[_Frame]") -> int | None:
        # Until the loop is entered, nothing may raise.
        interrupted = None
        while True:
            try:
                error = run(frame_pointer.contents)
                break
            except BaseException as raised:
                interrupted = type(raised)
        if interrupted is not None:
            left = threading.Lock()
            left.acquire()
            _thread.start_new_thread(_raise_once_left, (left, threading.get_ident(), interrupted))
            left.release()
        return error

    _defer_signals_at_start(handle)
    handler = _Handler(handle)
    _registered.append(handler)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")


def _defer_signals_at_start(function: Any) -> None:
    """Lets CPython run no signal's handler when the function is entered, where nothing could be caught.

    It looks for signals at an instruction RESUME, unless that is said to resume `yield from`.
    """
    code = bytearray(function.__code__.co_code)
    for place in range(0, len(code), 2):
        if code[place] == opcode.opmap["RESUME"]:
            code[place + 1] = 2
            break
    function.__code__ = function.__code__.replace(co_code=bytes(code))


def _raise_once_left(left: threading.Lock, thread: int, kind: type[BaseException]) -> None:
    with left:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


def _keep_thread_state() -> None:
    """Lets what Python knows of one of XLA's threads outlive the call, which it would be made anew for: 10 of 15 us."""
    if not getattr(_threads, "kept", False):
        _threads.kept = True
        ctypes.pythonapi.PyGILState_Ensure()
