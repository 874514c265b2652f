"""The file metrics.jsonl, and the same metrics for TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxnets.errors import InputError


class MetricsLog:
    """Writes metrics.jsonl, one JSON object a line. Use as a context manager.

    A resumed run keeps the first `bytes_before` bytes, which its checkpoint knows of, and writes the rest again.
    """

    def __init__(self, workdir: Path, bytes_before: int, step_before: int, tensorboard: bool = False) -> None:
        self._path = workdir / "metrics.jsonl"
        if bytes_before and (not self._path.exists() or self._path.stat().st_size < bytes_before):
            raise InputError(f"{self._path} is shorter than when the run stopped; restore it")
        with self._path.open("ab") as file:
            file.truncate(bytes_before)
        self._writer = _tensorboard(workdir, step_before) if tensorboard else None

    def add(self, split: str, step: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Adds a line."""
        metrics = {name: json_value(value) for name, value in metrics.items()}
        line = {"split": split, "step": step, "epoch": epoch, **metrics}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in metrics.items():
                numbers = value.items() if isinstance(value, dict) else [("", value)]
                for part, number in numbers:
                    if isinstance(number, int | float):
                        self._writer.add_scalar("/".join(filter(None, (split, name, part))), number, step)

    def histograms(self, step: int, params: Any) -> None:
        """Adds histograms of parameters to TensorBoard's files."""
        if self._writer is not None:
            for path, array in flatten_dict(params).items():
                self._writer.add_histogram("/".join(("params", *path)), np.asarray(array, np.float64), step)

    def bytes_on_disk(self) -> int:
        """The length of metrics.jsonl, after writing all of it to the disk."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def json_value(value: Any) -> Any:
    """A number, or nested lists or a dict of numbers, with null in the place of what JSON lacks: infinity and NaN."""
    if isinstance(value, dict):
        return {name: json_value(one) for name, one in value.items()}
    if isinstance(value, list):
        return [json_value(one) for one in value]
    return value if math.isfinite(value) else None


def require_tensorboard() -> None:
    """Raises InputError if tensorboardX is not installed."""
    if find_spec("tensorboardX") is None:
        raise InputError("--tensorboard needs tensorboardX; pip install 'jaxnets[tensorboard]'")


def _tensorboard(workdir: Path, step_before: int) -> Any:
    from tensorboardX import SummaryWriter

    # TensorBoard forgets later steps of the stopped run. tensorboardX names its files by the second, so that a run that
    # resumes within a second would overwrite the file.
    suffix = f".{step_before}"
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step_before + 1, filename_suffix=suffix)
