"""What happens when a part that the engine rests on is broken: one warning, and the right numbers."""

import importlib.metadata
import itertools
import opcode
import sys
import warnings
from collections.abc import Callable
from ctypes import c_int
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.inference import specialised
from jaxnets.ops import batch_norm, conv2d, conv2d_bias, cpu, max_pool
from jaxnets.ops.cpu import availability, calls, library
from jaxnets.ops.cpu.library import Call, array_at
from tests.ops.cpu.test_engine import pytestmark as pytestmark

_count = itertools.count()
Break = Callable[[pytest.MonkeyPatch, Path], object]


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The state of the engine in a process that has not used it."""
    monkeypatch.setattr(calls, "register", cache(calls.register.__wrapped__))
    monkeypatch.setattr(calls, "TARGET", f"{calls.TARGET}_{next(_count)}")
    monkeypatch.setattr(calls, "_plans", calls.Plans())
    library.libraries.cache_clear()
    yield
    library.libraries.cache_clear()


def train() -> tuple[list[float], list[str]]:
    """The losses of three steps of a small network, and what is warned of."""
    random = np.random.RandomState(0)
    images = random.standard_normal((4, 12, 12, 8))
    params = [random.standard_normal(shape) / 9 for shape in ((3, 3, 8, 16), (3, 3, 16, 16))]

    def loss(params: Any) -> jax.Array:
        ones = jnp.ones(16, params[0].dtype)
        x = conv2d(jnp.asarray(images, params[0].dtype), params[0], padding=1)
        x, _ = batch_norm(x, ones, ones / 8, 1e-3, None, jax.nn.relu)
        x = conv2d_bias(max_pool(x, 3, stride=2), params[1], ones / 4, activation=jax.nn.relu)
        return jnp.square(x - 1).mean()

    @jax.jit
    def step(params: Any) -> tuple[Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params)
        return [param - gradient for param, gradient in zip(params, gradients, strict=True)], value

    params, losses = [jnp.asarray(param) for param in params], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            params, value = step(params)
            losses.append(float(value))
    return losses, [str(warning.message) for warning in caught]


def llvmlite_missing(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)


def llvmlite_raising(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def refuse(text: str) -> None:
        raise RuntimeError("LLVM IR parsing error\ntyped pointers are gone")

    monkeypatch.setattr("llvmlite.binding.parse_assembly", refuse)


def package_missing(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def missing(package: str) -> None:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", missing)


def library_missing(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])


def no_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    path = folder / "libdnnl.so.3"
    path.write_bytes(b"not a library")
    file = SimpleNamespace(name=path.name, locate=lambda: path)
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [file])


def other_version(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    class Other(library.ctypes.PyDLL):
        def __getattr__(self, name: str) -> Any:
            return (lambda: (c_int * 3)(4, 0, 0)) if name == "dnnl_version" else super().__getattr__(name)

    monkeypatch.setattr(library.ctypes, "PyDLL", Other)


BROKEN: list[tuple[Break, str]] = [
    (llvmlite_missing, "ModuleNotFoundError"),
    (llvmlite_raising, "LLVM IR parsing error typed pointers"),
    (package_missing, "oneDNN is missing: pip install onednn-cpu-gomp"),
    (library_missing, "oneDNN is missing"),
    (no_library, "oneDNN cannot be loaded"),
    (other_version, "oneDNN 4 is installed"),
]


@pytest.fixture(scope="module")
def expected() -> list[float]:
    with jax.enable_x64(True):
        return train()[0]


@pytest.mark.parametrize(("break_", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_what_it_rests_on_is_broken(
    break_: Break, message: str, expected: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    break_(monkeypatch, tmp_path)
    losses, warned = train()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(warned) == 1
    assert message in warned[0]
    assert "\n" not in warned[0]
    assert not cpu.available()


# The index of a result among a call's arrays.
@pytest.mark.parametrize(
    ("kind", "result", "name"),
    [
        ("Convolution", 2, "convolution"),
        ("BiasedConvolution", 4, "convolution with bias"),
        ("MaxPool", 1, "max-pooling"),
        ("MaxPoolGradient", 2, "max-pooling's gradient"),
        ("Normalisation", 3, "normalisation"),
        ("NormalisationGradient", 6, "normalisation's gradients"),
    ],
)
def test_wrong_results(
    kind: str, result: int, name: str, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = calls.prepare

    def spoil(operation: str, numbers: dict[str, Any]) -> Call:
        call = prepare(operation, numbers)
        if operation == kind:
            call._steps = [*call._steps, lambda arrays: array_at(arrays[result], [7]).__iadd__(0.01)]
        return call

    monkeypatch.setattr(calls, "prepare", spoil)
    losses, warned = train()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(warned) == 1
    assert f"the engine's {name} has wrong results" in warned[0]


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["Convolution", "MaxPool", "NormalisationGradient"])
def test_an_operation_that_cannot_be_created_later(
    kind: str, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpu.available()
    prepare = calls.prepare

    def refuse(operation: str, numbers: dict[str, Any]) -> Call:
        if operation == kind:
            raise RuntimeError("status 3")
        return prepare(operation, numbers)

    monkeypatch.setattr(calls, "prepare", refuse)
    losses, warned = train()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(warned) == 1
    assert "RuntimeError: status 3" in warned[0]


def test_an_interpreter_with_other_opcodes(expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcode, "opmap", {})
    losses, warned = train()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert cpu.available()
    assert not warned


@pytest.mark.fast
def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(availability.SWITCH, "winograd,joined_calls")
    availability.forget()
    assert cpu.available()
    assert not availability.uses("winograd")
    assert availability.uses("own_pooling")
    monkeypatch.setenv(availability.SWITCH, "winograd,speed")
    availability.forget()
    with pytest.warns(UserWarning, match="JAXNETS_CPU_WITHOUT names speed; expected some of all, winograd"):
        availability.uses("winograd")


def test_kernels_that_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.available()
    prepare = calls.prepare

    def refuse(operation: str, numbers: dict[str, Any]) -> Call:
        if operation == "KernelPacking":
            raise RuntimeError("status 3")
        return prepare(operation, numbers)

    monkeypatch.setattr(calls, "prepare", refuse)
    images, kernel = jnp.ones((1, 6, 6, 8)), jnp.ones((3, 3, 8, 8))
    with pytest.warns(UserWarning, match="RuntimeError: status 3"):
        run = specialised(lambda kernel, images: conv2d_bias(images, kernel, jnp.ones(8)), kernel, images)
    np.testing.assert_allclose(run(images), 73)
