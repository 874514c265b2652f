"""metrics.jsonl and the files for TensorBoard say the same."""

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.loop import train
from jaxnets.training.metrics_log import MetricsLog
from jaxnets.training.parallel import Parallel
from tests.training.tiny import GREYS, PLAIN


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir: Path) -> list[Event]:
    """From all files, in their order. A record is its length, four bytes, an event, and four bytes (TFRecord)."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert len(data) >= length + 16
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[length + 16 :]
    return found


def scalars(workdir: Path) -> dict[tuple[str, int], float]:
    return {(value.tag, event.step): value.simple_value for event in events(workdir) for value in event.summary.value}


@pytest.mark.usefixtures("tiny")
def test_tensorboard_sees_the_metrics_of_a_run(tmp_path: Path) -> None:
    config = Config("resnet20_cifar", PLAIN, "greys", log_every=3)
    train(config, tmp_path, GREYS, parallel=Parallel.choose("jit"), tensorboard=True)
    expected = {
        (f"{line['split']}/{name}", line["step"]): value
        for line in lines(tmp_path)
        for name, value in line.items()
        if name not in ("split", "step", "epoch")
    }
    assert {tag for tag, _ in expected} == {
        "train/loss", "train/accuracy", "train/top5_accuracy", "train/count",
        "train/learning_rate", "train/images_per_second",
        "val/loss", "val/accuracy", "val/top5_accuracy", "val/count", "val/seconds",
        "test/loss", "test/accuracy", "test/top5_accuracy", "test/count", "test/seconds",
    }  # fmt: skip
    assert scalars(tmp_path) == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("tiny")
def test_without_tensorboardx_a_run_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"^.*tensorboardX; pip install 'jaxnets\[tensorboard\]'$"):
        train(
            Config("resnet20_cifar", PLAIN, "greys"),
            tmp_path,
            GREYS,
            parallel=Parallel.choose("jit"),
            tensorboard=True,
        )


def test_what_came_after_the_checkpoint_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both files are begun within one second.
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    with MetricsLog(tmp_path, 0, 0, tensorboard=True) as log:
        log.add("train", 10, 1, {"loss": 2.5})
        kept = log.bytes_on_disk()
        log.add("train", 20, 2, {"loss": 1.5})
    assert kept == len((tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0])
    with MetricsLog(tmp_path, kept, 12, tensorboard=True) as log:
        log.add("train", 20, 2, {"loss": 1.25, "seconds": float("nan")})
    assert lines(tmp_path) == [
        {"split": "train", "step": 10, "epoch": 1, "loss": 2.5},
        {"split": "train", "step": 20, "epoch": 2, "loss": 1.25, "seconds": None},
    ]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    # TensorBoard is told to forget what it has of later steps.
    started = [event.step for event in events(tmp_path) if event.session_log.status == 1]
    assert started == [1, 13]
    assert scalars(tmp_path) == {("train/loss", 10): 2.5, ("train/loss", 20): 1.25}


def test_a_log_that_lost_its_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl is shorter than when the run stopped; restore it"):
        MetricsLog(tmp_path, 4, 1)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="is shorter"):
        MetricsLog(tmp_path, 3, 1)
    MetricsLog(tmp_path, 0, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_norms_by_layer_and_histograms_reach_tensorboard(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0, 0, tensorboard=True) as log:
        log.add("train", 10, 1, {"gradient_norms": {"a/conv": 0.5, "fc": float("nan")}})
        log.histograms(10, {"a": {"conv": {"kernel": np.arange(6.0).reshape(2, 3)}}})
    assert lines(tmp_path)[0]["gradient_norms"] == {"a/conv": 0.5, "fc": None}
    values = {value.tag: value for event in events(tmp_path) for value in event.summary.value}
    assert set(values) == {"train/gradient_norms/a/conv", "params/a/conv/kernel"}
    histogram = values["params/a/conv/kernel"].histo
    assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (0, 5, 6, 15)
