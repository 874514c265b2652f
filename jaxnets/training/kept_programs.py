"""Compiled programs that are kept between starts, and found again without being traced.

JAX's compilation cache is asked with a lowered program; to trace and to lower ResNet-50's training step takes three
times as long as to load it. Here a program is found by all that it follows from.

A kept program is machine code, and its file is unpickled: the folder must be the user's own, as JAX's cache must be.
"""

import os
import pickle
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import jaxnets
from jaxnets.ops import onednn

# What has a part in how a program is written, and what it calls.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "onednn-cpu-gomp", "llvmlite")
_SETTINGS = ("JAX_", "JAXNETS_", "XLA_", "ONEDNN_", "DNNL_")
_MOST_KEPT = 16


@dataclass(frozen=True)
class KeptPrograms:
    """Programs for `device` in `folder`, which has others too. `made_of` says what they are made of, but for code."""

    folder: Path
    made_of: str
    device: jax.Device

    def program(self, compiled: Callable[[], Any], *arguments: Any) -> Any:
        """The program for arguments of these shapes and types, as it was kept; else what `compiled` gives, to keep."""
        try:
            path = self.path_of(*arguments)
        except (OSError, ValueError):  # of code that can't be read any more
            return compiled()
        program = self._find(path)
        if program is None:
            with _past_the_cache_of_jax():
                program = compiled()
            # Not where the files have changed since they were imported.
            if _read_source() == _source():
                self._keep(path, program)
        return program

    def path_of(self, *arguments: Any) -> Path:
        """The file of the program for arguments of these shapes and types."""
        leaves, structure = jax.tree.flatten(arguments)
        types = [str(jax.typeof(leaf)) for leaf in leaves]
        return self.folder / f"{_digest(self.made_of, str(structure), *types, *_surroundings(self.device))}.program"

    def _find(self, path: Path) -> Any:
        try:
            checksum, content = path.read_bytes().split(b"\n", 1)
            if checksum != _checksum(content):
                return None
            (program, arguments, results), calls = pickle.loads(content)
            load = partial(
                serialize_executable.deserialize_and_load,
                *(program, arguments, results),
                backend=self.device.client,
                execution_devices=[self.device],
            )
            with ThreadPoolExecutor(1) as pool:
                loading = pool.submit(load)
                onednn.prepare(calls)
                found = loading.result()
            with suppress(OSError):
                os.utime(path)
        except Exception:  # there is none, or its file is damaged; then it is compiled, and kept anew
            return None
        return found

    def _keep(self, path: Path, program: Any) -> None:
        part = path.with_suffix(f".{os.getpid()}")
        # Training goes on without: not every program can be written, nor every folder written to.
        with suppress(Exception):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                content = pickle.dumps((serialize_executable.serialize(program), onednn.prepared_calls()))
                part.write_bytes(_checksum(content) + b"\n" + content)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            # Those that were not used for the longest time go.
            kept = sorted(self.folder.glob("*.program"), key=lambda other: other.stat().st_mtime)
            for old in kept[:-_MOST_KEPT]:
                old.unlink()


@contextmanager
def _past_the_cache_of_jax() -> Iterator[None]:
    """Compiles anew: what was loaded from JAX's cache could be written once more, but without some of its code."""
    enabled: bool = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        reset_cache()


def _surroundings(device: jax.Device) -> list[str]:
    """What else decides on a program: code, versions, settings and the machine."""
    # An attribute is what a context manager has set, where one has.
    flags = {name: getattr(jax.config, name, value) for name, value in jax.config.values.items() if "cache" not in name}
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(_SETTINGS) and "CACHE" not in name
    }
    return [
        _source(),
        sys.version,
        *(_version(package) for package in _PACKAGES),
        repr(sorted(flags.items())),
        repr(sorted(environment.items())),
        f"{device} {device.device_kind} {device.client.platform_version} {jax.device_count()}",
        _processor(),
        f"oneDNN {onednn.usable()}",  # and registers what a program calls, before it is loaded
    ]


def _read_source() -> str:
    """The digest of all of jaxnets' code; empty where it can't be read."""
    folder = Path(jaxnets.__file__).parent
    files = sorted(path for path in folder.rglob("*.py") if not path.name.startswith("."))
    try:
        return _digest(*(f"{path.relative_to(folder)} {path.read_text('utf-8')}" for path in files))
    except (OSError, ValueError):
        return ""


def _source() -> str:
    if not _SOURCE:
        raise OSError("jaxnets' code can't be read")
    return _SOURCE


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@cache
def _processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = ""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {cores} {flags}"


def _checksum(content: bytes) -> bytes:
    return sha256(content).hexdigest().encode()


def _digest(*parts: str) -> str:
    digest = sha256()
    for part in parts:
        digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()


# As it is imported, for a run may look at its images for minutes before its first step.
_SOURCE = _read_source()
