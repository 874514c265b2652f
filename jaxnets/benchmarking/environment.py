"""What the results of a benchmark depend on besides its settings."""

import importlib.metadata
import os
import platform
import subprocess
from importlib.util import find_spec
from pathlib import Path

from jaxnets.data.pipeline import available_cores

_VERSIONS = ("jax", "jaxlib", "torch", "onnxruntime")


def environment() -> dict[str, str]:
    """What results depend on: the processor, the versions and the commit."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS if find_spec(name) is not None}
    return {
        "processor": _processor(),
        "cores": str(available_cores()),
        "instructions": _instructions(),
        "python": platform.python_version(),
        **versions,
        "commit": _commit(),
    }


def _processor() -> str:
    return _of_cpuinfo("model name") or platform.machine()


def _instructions() -> str:
    """The widest vectors that oneDNN may use."""
    flags, limit = _of_cpuinfo("flags").split(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    widest = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return f"at most {limit}" if limit else widest


def _of_cpuinfo(name: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith(name)), "")


def _commit() -> str:
    """The commit of a checkout, or nothing."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", os.fspath(folder.parent))
    return git("rev-parse", "--short=9", "HEAD") + (" with changes" if changed else "")
