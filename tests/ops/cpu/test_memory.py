"""`keep_memory`: what a program frees stays in its heap; `make_room`: a program's block fits in it again."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from experiments import command
from jaxnets.ops.cpu import memory

_GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"

# The file alone, as importing jaxnets takes longer than all this.
_START = f"""
import ctypes, importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("memory", {memory.__file__!r})
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
print(memory.keep_memory() if sys.argv[1] != "not" else None)
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.aligned_alloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.aligned_alloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
size = 64 << 20
"""
_SCRIPT = f"""{_START}
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    address = libc.malloc(size)
    ctypes.memset(address, 1, size)
    libc.free(address)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


@pytest.mark.skipif(not _GLIBC, reason="needs Linux with glibc")
@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_is_used_again(kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", _SCRIPT, "kept" if kept else "not"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    changed, faults = done.stdout.splitlines()
    if changed == "False":
        pytest.skip("an NVIDIA device is here")
    later = [int(count) for count in faults.split()[1:]]
    assert all(count < 100 for count in later) == kept


_STEPS = """
import resource
import jax, jax.numpy as jnp
import jaxnets
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20
def function(x):
    y = jax.lax.optimization_barrier(2 * x)
    return jax.lax.optimization_barrier(y[::-1] + x).sum()
print(jaxnets.keep_memory())
values = jnp.arange(16 << 20, dtype=jnp.float32)
parts = [bytes(10_000) for _ in range(30_000)]
end = bytes(10_000)
full = resident()
del parts
compiled = jaxnets.compile(jax.jit(function), values)
before = resident()
kept = []
for number in range(20):
    jax.block_until_ready(compiled(values))
    kept.append([bytearray(number * 7) for _ in range(100)])
print(full, before, resident(), compiled.memory_analysis().temp_size_in_bytes >> 20)
"""


@pytest.mark.skipif(not _GLIBC, reason="needs Linux with glibc")
def test_what_compiling_used_returns_to_the_system() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", _STEPS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    changed, numbers = done.stdout.splitlines()
    if changed == "False":
        pytest.skip("an NVIDIA device is here")
    full, before, after, size = map(int, numbers.split())
    # 30,000 blocks of 10 kB had been freed, but the memory is kept until the program is compiled.
    assert full - before > 200
    assert size >= 64
    # The steps may take a second block, depending on what lies in the heap.
    assert size - 10 < after - before < 2.5 * size


@pytest.mark.parametrize("reason", ["other system", "other library", "tuned", "gpu"])
def test_changes_nothing_elsewhere(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: None) -> None:
        raise AssertionError("called the C library")

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    monkeypatch.setattr(memory, "jax", SimpleNamespace(config=SimpleNamespace(update=lambda *_: None)))
    monkeypatch.setattr(sys, "platform", "darwin" if reason == "other system" else "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", "") if reason == "other library" else ("glibc", "2.36"))
    monkeypatch.setattr(os.path, "exists", lambda path: reason == "gpu" and path == "/dev/nvidiactl")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=4" if reason == "tuned" else "")
    assert not memory.keep_memory()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *_: 1))
    if reason == "tuned":
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=512")
        assert memory.keep_memory()


def test_commands_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(command, "keep_memory", lambda: called.append("keep_memory"))
    monkeypatch.setattr(command, "_configure_jax", lambda: None)
    command.run(lambda: called.append("main"))
    assert called == ["keep_memory", "main"]
