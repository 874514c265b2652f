"""The study of the cost of transfer runs, and its arithmetic is right."""

import json
import sys
from importlib import import_module
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("small_networks")


def run(
    name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--json"])
    capsys.readouterr()
    import_module(f"experiments.studies.{name}").main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_transfer_cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--arch", "small_resnet", "--image-size", 8, "--batch-size", 4)
    found = run("transfer_cost", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    # One momentum a parameter that is trained, and the schedule's count.
    for way in ("full", "partial", "head"):
        assert found[way]["optimizer_bytes"] == 4 * found[way]["trained_parameters"] + 4
        assert found[way]["seconds_a_step"] > 0
    assert found["full"]["memory_ratio"] == found["full"]["time_ratio"] == 1
    assert found["head"]["trained_parameters"] == 8 * 10 + 10
    assert found["partial"]["memory_ratio"] < 0.5
