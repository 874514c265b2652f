"""The measurement of the CPU engine's parts."""

import json
import sys

import pytest

from jaxnets.benchmarking import engine
from jaxnets.benchmarking.worker import Job
from jaxnets.ops.cpu import availability
from tests.ops.cpu.test_engine import pytestmark as pytestmark


@pytest.mark.slow
def test_parts_take_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    switched: list[str] = []
    forget = availability.forget

    def record() -> None:
        switched.append(engine.os.environ[availability.SWITCH])
        forget()

    monkeypatch.setattr(availability, "forget", record)
    monkeypatch.setattr(engine, "keep_memory", lambda: None)  # it would stay for the other tests
    command = ["engine", "resnet20_cifar", "--image-size", "8", "--batch-size", "2", "--mode", "inference"]
    monkeypatch.setattr(sys, "argv", [*command, "--parts", "joined_calls", "own_pooling", "--rounds", "3"])
    engine.main()
    assert switched == ["", "joined_calls", "own_pooling"]
    result = json.loads(capsys.readouterr().out)
    assert (result["arch"], result["image_size"], result["mode"]) == ("resnet20_cifar", 8, "inference")
    for clocks in result["without_over_with"].values():
        for lower, median, upper, of_shortest in (clocks["clock"], clocks["cores"]):
            assert 0 < lower <= median <= upper
            assert of_shortest > 0


def test_each_form_runs_its_own_plans() -> None:
    job = Job("resnet20_cifar", 8, 2, "inference")
    engine.os.environ[availability.SWITCH] = ""
    _, whole = engine._compiled(job)
    engine.os.environ[availability.SWITCH] = "joined_calls"
    availability.forget()
    _, apart = engine._compiled(job)
    joined, single = (max(len(plan.operations) for plan in plans._plans.values()) for plans in (whole, apart))
    assert joined > single
