"""What a run notes about itself while it trains."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jaxnets.training.config import Config
from jaxnets.training.progress import Progress
from jaxnets.training.run_log import Position, RunLog
from tests.training.tiny import PLAIN


class Unready:
    """What a step that takes its time brings."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def block_until_ready(self) -> "Unready":
        time.sleep(max(0.0, self._end - time.perf_counter()))
        return self


def slowly(seconds: float) -> Iterator[Any]:
    while True:
        time.sleep(seconds)
        yield None


@pytest.mark.parametrize(
    ("step_seconds", "batch_seconds", "lost"),
    # What is read while a step runs is not lost.
    [(0.5, 0.2, 0.0), (0.2, 0.5, 0.3), (0.0, 0.3, 0.3), (None, 0.3, 0.3)],
)
def test_only_what_no_step_fills_is_lost_to_waiting(
    step_seconds: float | None, batch_seconds: float, lost: float
) -> None:
    config = Config("resnet20_cifar", PLAIN)
    with Progress(1, quiet=True) as progress:
        log = RunLog(Position(), None, progress, config, np.ones(1), lambda epoch: epoch, lambda: None, 0.0)
        if step_seconds is not None:
            log.trained({"loss": Unready(step_seconds)})
        log.timed_wait(slowly(batch_seconds))
    assert log.position.waiting_seconds == pytest.approx(lost, abs=0.1)
