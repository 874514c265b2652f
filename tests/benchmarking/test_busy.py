"""The measurement beside busy processes: they are there in its second half alone, and end with it."""

import json
import sys
from typing import Any

import pytest

from jaxnets.benchmarking import busy, engine


def test_each_round_is_alone_and_then_beside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []
    running: list[int] = []
    start = busy.subprocess.Popen

    def starting(command: list[str]) -> Any:
        started.append(start(command))
        return started[-1]

    def rate(step: Any, seconds: float) -> float:
        running.append(sum(process.poll() is None for process in started))
        return 8.0 / (1 + running[-1])

    monkeypatch.setattr(busy.subprocess, "Popen", starting)
    monkeypatch.setattr(busy, "steps_per_second", rate)
    monkeypatch.setattr(busy, "make_step", lambda job: (lambda: None, 0.0, lambda: 0.0))
    monkeypatch.setattr(busy, "keep_memory", lambda: None)  # it would stay for the other tests
    command = ["busy", "resnet20_cifar", "--image-size", "8", "--batch-size", "2", "--processes", "3", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", command)
    busy.main()
    assert running == [0, 3, 0, 3]
    assert all(process.poll() is not None for process in started)
    result = json.loads(capsys.readouterr().out)
    assert (result["alone_images_per_second"], result["beside_images_per_second"]) == (16, 4)
    assert (result["ratio"], result["ratio_spread"]) == (0.25, [0.25, 0.25])


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (busy, ["resnet5"], "unknown architecture 'resnet5'"),
        (busy, ["resnet18", "--rounds", "0"], "--rounds 0; expected at least 1"),
        (busy, ["resnet18", "--processes", "-1"], "--processes -1; expected at least 1"),
        (engine, ["resnet5"], "unknown architecture 'resnet5'"),
        (engine, ["resnet18", "--rounds", "1"], "--rounds 1; expected at least 2"),
        (engine, ["resnet18", "--batch-size", "0"], "batch_size=0; expected"),
    ],
)
def test_bad_input_is_refused(
    command: Any,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "keep_memory", lambda: None)
    monkeypatch.setattr(sys, "argv", ["measure", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert message in capsys.readouterr().err
