"""docs/notebook.py runs from its first cell to its last, as a user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.py"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),  # type: ignore[attr-defined]
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, str(NOTEBOOK)], cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    result = json.loads((tmp_path / "runs" / "resnet20_cifar-photos" / "result.json").read_text())
    assert f"Run(resnet20_cifar on {tmp_path}/photos: test accuracy {result['test_accuracy']:.2%}" in done.stdout
    # Five classes: much better than chance, after the few epochs that a test can wait for.
    assert result["test_accuracy"] > 0.5
    wrong, total = map(int, re.search(r"(\d+) of (\d+) are wrong", done.stdout).groups())  # type: ignore[union-attr]
    assert (total, 1 - wrong / total) == (180, pytest.approx(result["test_accuracy"]))
    assert done.stdout.splitlines()[-1].count("digit") == 8


def test_each_cell_is_marked() -> None:
    first, *cells = re.split(r"^# %%", NOTEBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert first.startswith('"""')
    assert len(cells) > 10
    for cell in cells:
        head, *lines = cell.strip("\n").splitlines() if cell.startswith(" ") else ["", *cell.strip().splitlines()]
        assert head in ("", " [markdown]")
        assert lines
        assert all(line.startswith("#") for line in lines) == (head == " [markdown]")
