"""Commands as a user types them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax


def command(name: str, *arguments: object, folder: Path, quickly: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `python -m experiments.NAME ARGUMENTS` in a folder, with the programs that an earlier command compiled.

    With `quickly`, XLA does few optimisations; users' programs have all.
    """
    environment = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(quickly),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-m", f"experiments.{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=300,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One clear line, or argparse's usage and one line; never a traceback."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.stderr.splitlines()[-1] == line
    for word in words:
        assert word in line, line


Refuses = Callable[..., None]
