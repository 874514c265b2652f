"""A Python function as XLA's custom call on the CPU, on arrays where they lie.

XLA calls a handler through a stable C interface (jaxlib's include/xla/ffi/api/c_api.h). The handler is a few lines of
machine code, which hand the call's frame to one Python thread and wait for it. So a signal's Python handler, which runs
on the main thread, never runs within a call, and OpenMP sees one thread, which needs one team of others.
"""

import atexit
import ctypes
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import jax

from jaxnets.ops.cpu import machine_code

_METADATA_EXTENSION = 1
_EXECUTE_STAGE = 3
_INTERNAL_ERROR = 13
# More than glibc's pthread_mutex_t and sem_t take.
_LOCK_SIZE = 128


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


class _Mailbox(Structure):
    """What the machine code and the thread share: the current call's frame and error.

    Once `closed` calls fail with `closing_error`, as the interpreter ends, and the thread with it.
    """

    _fields_ = [
        ("frame", c_void_p),
        ("error", c_void_p),
        ("closed", c_int64),
        ("closing_error", _ErrorArguments),
        ("one_at_a_time", c_char * _LOCK_SIZE),
        ("called", c_char * _LOCK_SIZE),
        ("finished", c_char * _LOCK_SIZE),
    ]


_alive: list[object] = []  # XLA and the thread keep addresses only


def register(target: str, function: Callable[[str, Sequence[int]], None]) -> None:
    """Makes `target` a custom call that runs `function` on its attribute `call` and its arrays' addresses.

    Arguments come first, then results. An exception fails the program with its text. Calls run one at a time, on one
    thread of their own.
    """
    libc = ctypes.CDLL(None)
    mailbox = _Mailbox()
    message = f"{target}: the interpreter is ending".encode()
    mailbox.closing_error = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL_ERROR)
    for name in ("called", "finished"):
        libc.sem_init(ctypes.byref(mailbox, getattr(_Mailbox, name).offset), 0, 0)
    address = machine_code.compile("handle", lambda module: _write(module, ctypes.addressof(mailbox)))
    handler = ctypes.CFUNCTYPE(c_void_p, c_void_p)(address)
    _alive.extend([mailbox, handler])
    thread = threading.Thread(target=_serve, args=(mailbox, target, function), name=target, daemon=True)
    thread.start()
    atexit.register(_close, mailbox)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")


def _serve(mailbox: _Mailbox, target: str, function: Callable[[str, Sequence[int]], None]) -> None:
    libc = ctypes.CDLL(None)
    called, finished = (ctypes.byref(mailbox, getattr(_Mailbox, name).offset) for name in ("called", "finished"))
    while True:
        while libc.sem_wait(called):  # again if a signal interrupted it
            pass
        frame = _Frame.from_address(mailbox.frame)
        mailbox.error = _run(frame, target, function)
        libc.sem_post(finished)


def _close(mailbox: _Mailbox) -> None:
    """Waits for the current call, and lets later ones fail: Python holds its lock while it waits for JAX's programs."""
    libc, lock = ctypes.CDLL(None), ctypes.byref(mailbox, _Mailbox.one_at_a_time.offset)
    libc.pthread_mutex_lock(lock)
    mailbox.closed = 1
    libc.pthread_mutex_unlock(lock)


def _run(frame: _Frame, target: str, function: Callable[[str, Sequence[int]], None]) -> int | None:
    try:
        text = frame.attributes.texts[0].contents
        addresses = [
            side.buffers[i].contents.data for side in (frame.arguments, frame.results) for i in range(side.size)
        ]
        function(ctypes.string_at(text.data, text.size).decode(), addresses)
    except BaseException as error:
        message = f"{target}: {error}".encode()
        arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL_ERROR)
        return frame.api.contents.create_error(ctypes.byref(arguments))
    return None


def _write(module: Any, mailbox: int) -> None:
    """Writes the handler: it answers XLA's question for the version, and hands frames to the thread."""
    from llvmlite import ir

    libc = ctypes.CDLL(None)
    address, integer = ir.IntType(64), ir.IntType(32)
    handle = ir.Function(module, ir.FunctionType(address, [address]), "handle")
    frame = handle.args[0]
    code = ir.IRBuilder(handle.append_basic_block())
    question, answer, stage, enter, refuse, send, wait, receive, leave = (handle.append_basic_block() for _ in range(9))

    def pointer(base: Any, offset: int, kind: Any) -> Any:
        return code.inttoptr(code.add(base, address(offset)), ir.PointerType(kind))

    def load(base: Any, offset: int, kind: Any = address) -> Any:
        return code.load(pointer(base, offset, kind))

    def call(name: str, lock: str) -> Any:
        function = ctypes.cast(getattr(libc, name), c_void_p).value
        kind = ir.PointerType(ir.FunctionType(integer, [address]))
        return code.call(code.inttoptr(address(function), kind), [address(mailbox + getattr(_Mailbox, lock).offset)])

    extension = load(frame, _Frame.extension.offset)
    code.cbranch(code.icmp_unsigned("==", extension, address(0)), stage, question)
    code.position_at_end(question)
    asks = code.icmp_unsigned("==", load(extension, _Extension.type.offset, integer), integer(_METADATA_EXTENSION))
    code.cbranch(asks, answer, stage)
    code.position_at_end(answer)
    metadata = load(extension, _Extension.metadata.offset)
    for part in (_ApiVersion.major, _ApiVersion.minor):
        version = load(load(frame, _Frame.api.offset), _Api.version.offset + part.offset, integer)
        code.store(version, pointer(metadata, _Metadata.version.offset + part.offset, integer))
    code.branch(leave)
    code.position_at_end(stage)
    executes = code.icmp_unsigned("==", load(frame, _Frame.stage.offset, integer), integer(_EXECUTE_STAGE))
    code.cbranch(executes, enter, leave)
    code.position_at_end(enter)
    call("pthread_mutex_lock", "one_at_a_time")
    is_closed = code.icmp_unsigned("!=", load(address(mailbox), _Mailbox.closed.offset), address(0))
    code.cbranch(is_closed, refuse, send)
    code.position_at_end(refuse)
    call("pthread_mutex_unlock", "one_at_a_time")
    create_error = ir.PointerType(ir.FunctionType(address, [address]))
    create = load(load(frame, _Frame.api.offset), _Api.create_error.offset, create_error)
    code.ret(code.call(create, [address(mailbox + _Mailbox.closing_error.offset)]))
    code.position_at_end(send)
    code.store(frame, pointer(address(mailbox), _Mailbox.frame.offset, address))
    call("sem_post", "called")
    code.branch(wait)
    code.position_at_end(wait)
    code.cbranch(code.icmp_unsigned("==", call("sem_wait", "finished"), integer(0)), receive, wait)
    code.position_at_end(receive)
    error = load(address(mailbox), _Mailbox.error.offset)
    call("pthread_mutex_unlock", "one_at_a_time")
    code.ret(error)
    code.position_at_end(leave)
    code.ret(address(0))
