"""A clock that jumps, as when it is set during a run, changes nothing of the run."""

import random
import time
from pathlib import Path

import pytest

from tests.training.networks import STILL, Trainer, assert_same_run, config, cpus

pytestmark = pytest.mark.usefixtures("small_networks")


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Trainer(config(**STILL, epochs=2), cpus(1), monkeypatch)
    assert train(tmp_path / "whole")
    draws, clock, jumps = random.Random(0), time.time, [0.0]

    def jumping() -> float:
        if draws.random() < 0.2:
            jumps.append(jumps[-1] + draws.choice((-30.0, -3.0, 3.0, 30.0)))
        return clock() + jumps[-1]

    monkeypatch.setattr(time, "time", jumping)
    assert not train(tmp_path / "run", stop=5, checkpoint_interval=0)
    assert train(tmp_path / "run", resume=True, checkpoint_interval=0)
    assert len(jumps) > 10
    assert_same_run(tmp_path / "run", tmp_path / "whole")
