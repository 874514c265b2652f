"""Shared fixtures. Compiled programs are cached between runs in pytest's own cache folder."""

from collections.abc import Iterator

import jax
import pytest


def pytest_configure(config: pytest.Config) -> None:
    cache = config.cache.mkdir("jax")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # What several devices do is tested on a CPU that is cut into as many.
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def float64() -> Iterator[None]:
    """Runs a test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield
