"""The report of a run that is interrupted: written after the state, and never in the way of the interruption."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxnets.report import write_report
from jaxnets.training import loop
from jaxnets.training.config import Config
from jaxnets.training.interruption import Interrupted
from tests.training.networks import Stop, checkpoints, cpus
from tests.training.tiny import GREYS, PLAIN

pytestmark = pytest.mark.usefixtures("tiny")
# Eight steps, four an epoch.
CONFIG = Config("tiny", replace(PLAIN, epochs=2, learning_rate=0.01), log_every=1)


def train(workdir: Path, **options: Any) -> dict[str, Any]:
    return loop.train(CONFIG, workdir, GREYS, parallel=cpus(1, "jit"), **options)


def fails(workdir: Path) -> Path:
    raise OSError(28, "No space left on device")


def ended(workdir: Path) -> Path:
    raise KeyboardInterrupt


def report_by(monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]) -> None:
    monkeypatch.setattr(loop, "write_report", write)


def test_an_interrupted_run_has_a_report_of_its_steps_until_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.html"
    report_by(monkeypatch, write_report)
    with pytest.raises(Interrupted):
        train(tmp_path, interruption=Stop(3))
    page = report.read_text()
    assert "Not finished" in page
    assert "<dd>3</dd><dt>last step in the log</dt>" in page
    assert f"--workdir {tmp_path} --resume" in page
    # A run that is killed between its result and its report keeps the old one; the next call replaces it.
    report_by(monkeypatch, ended)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, resume=True)
    assert report.read_text() == page
    report_by(monkeypatch, write_report)
    assert train(tmp_path, resume=True)["epochs"] == 2
    assert "Not finished" not in report.read_text()


def test_a_report_that_fails_does_not_hide_the_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report_by(monkeypatch, fails)
    with pytest.raises(Interrupted):
        train(tmp_path, interruption=Stop(3))
    assert "warning: report.html is not written: [Errno 28] No space left on device" in capsys.readouterr().err
    assert checkpoints(tmp_path) == [3]
