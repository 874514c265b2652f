"""What a person sees of a run."""

import io
import re
import sys
from functools import partial

import pytest
from tqdm import tqdm

from jaxnets.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    # Each step is drawn, however quick.
    monkeypatch.setattr("jaxnets.training.progress.tqdm", partial(tqdm, mininterval=0))
    return terminal


def drawn(terminal: Terminal) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", terminal.getvalue()) if "|" in line]


@pytest.mark.parametrize("before", [0, 6])
def test_a_bar_reaches_its_end_wherever_the_run_went_on(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    terminal = on_a_terminal(monkeypatch)
    with Progress(8) as progress:
        progress.start_at(before)
        for step in range(before + 1, 9):
            progress.advance(step, 1, 2, {"loss": 0.5, "accuracy": 0.75}, 123.4)
        progress.say("a line that stays")
        progress.end_epoch(1, 2, {"loss": 0.5, "accuracy": 0.75}, {"accuracy": 0.5}, 61)
    bars = drawn(terminal)
    assert re.search(
        rf"\| step {before + 1}/8, epoch 1/2, loss 0.500, accuracy 75.0%, 123 images/s, \d\d:\d\d left", bars[1]
    )
    assert "100%" in bars[-1]
    assert "step 8/8" in bars[-1]
    text = terminal.getvalue()
    assert "a line that stays\n" in text
    assert "epoch 1/2: train loss 0.500, train accuracy 75.0%, val accuracy 50.00%, 123 images/s, 1:01 left\n" in text


def test_elsewhere_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(100, 1000, 20))
    monkeypatch.setattr("jaxnets.training.progress.time.perf_counter", lambda: float(next(now)))
    with Progress(10) as progress:
        progress.start_at(4)
        for step in range(5, 11):
            progress.advance(step, 1, 1, {"loss": 0.5, "accuracy": 0.75}, 10.0)
    # One step takes 20 s.
    assert capsys.readouterr().err.splitlines() == [
        f"step {step}/10, epoch 1/1, loss 0.500, accuracy 75.0%, 10 images/s, {left} left"
        for step, left in ((7, "1:00"), (9, "0:20"))
    ]


def test_a_quiet_process_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with Progress(2, quiet=True) as progress:
        progress.say("nothing")
        progress.advance(1, 1, 1, {}, 1.0)
        progress.end_epoch(1, 1, {}, {}, 0.0)
    assert terminal.getvalue() == ""
