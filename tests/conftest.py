"""Shared fixtures. Compiled programs are cached between runs in pytest's own cache folder."""

import os
from collections.abc import Iterator

import jax
import pytest

from jaxnets.models import registry
from jaxnets.ops.cpu import availability
from tests.tiers import mark_fast


def pytest_configure(config: pytest.Config) -> None:
    cache = config.cache.mkdir("jax")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)  # of commands
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # Most programs of tests take longer to compile than to run.
    jax.config.update("jax_disable_most_optimizations", True)
    # Most tests are about what is computed on all platforms; those with `native` are about the CPU engine.
    os.environ.setdefault(availability.SWITCH, "all")
    # What several devices do is tested on a CPU that is cut into as many.
    jax.config.update("jax_num_cpu_devices", 8)
    if config.option.markexpr in ("slow", "exhaustive"):
        _pin()


def _pin() -> None:
    """Gives this worker a core of its own. Two that train on the same cores wait for each other's threads."""
    cores, worker = sorted(os.sched_getaffinity(0)), os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and int(os.environ["PYTEST_XDIST_WORKER_COUNT"]) <= len(cores):
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw"))]})


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_fast(items)


@pytest.fixture
def float64() -> Iterator[None]:
    """Runs a test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs a test with the CPU engine, in its commands too, on machines that have it."""
    monkeypatch.setenv(availability.SWITCH, "")
    availability.forget()
    yield
    availability.forget()


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module() -> Iterator[None]:
    """Lets go of what a module's tests have compiled: all of it together takes gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """Makes small networks of all families known by name."""
    from tests.training.networks import register

    before = registry._FAMILIES["cifar"]
    register()
    yield
    registry._FAMILIES["cifar"] = before
