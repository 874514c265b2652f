"""Signals to real processes: a run ends at once or saves first, and goes on later; killed, it loses next to nothing."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.networks import (
    STILL,
    Trainer,
    arguments,
    assert_same_run,
    checkpoints,
    config,
    cpus,
    start,
)

pytestmark = pytest.mark.usefixtures("small_networks")

# Long enough to be met in the middle.
LONG = config(**{**STILL, "min_crop_area": 0.5, "dropout_rate": 0.3}, epochs=40)
Process = subprocess.Popen[str]


def wait_until(ready: Callable[[], Any], process: Process) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stepping(workdir: Path) -> Callable[[], bool]:
    """Whether a run has logged a step since this was last asked; one that goes on first takes back what it lost."""
    log = workdir / "metrics.jsonl"

    def logged() -> int:
        return log.read_bytes().count(b'"train"') if log.exists() else 0

    counts = [logged()]

    def stepped() -> bool:
        counts.append(logged())
        return counts[-1] > counts[-2]

    return stepped


def ended(process: Process, within: float) -> tuple[int, list[str]]:
    """The exit code and the lines on standard error of a process that ends in so many seconds."""
    try:
        _, errors = process.communicate(timeout=within)
    finally:
        process.kill()
    assert "Traceback" not in errors, errors
    return process.returncode, errors.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_a_signal_in_training_saves_and_a_kill_loses_nothing_that_was_saved(
    kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, newest = tmp_path / "run", 0
    for number in (signal.SIGINT, *[signal.SIGKILL] * kills):
        words = (*arguments(LONG, run), "--resume", "--checkpoint-interval", 0.2, "--parallel", "jit")
        # How XLA shares out a sum depends on the devices that there are; here are as many as in this process.
        process = start(*words, JAX_NUM_CPU_DEVICES="8")
        wait_until(stepping(run), process)
        time.sleep(random.uniform(0, 0.3))
        committed = max(checkpoints(run), default=0)
        process.send_signal(number)
        code, errors = ended(process, within=10)
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 128 + number
            assert errors[-1] == f"{number.name}: all is saved; the same command with --resume goes on", errors
            assert max(checkpoints(run)) > 0
        assert newest <= committed <= max(checkpoints(run))
        newest = max(checkpoints(run))
    train = Trainer(LONG, cpus(1), monkeypatch)
    assert train(tmp_path / "whole")
    assert newest < max(checkpoints(tmp_path / "whole")), "the run was over before it was killed: this shows nothing"
    assert train(run, resume=True)
    assert_same_run(run, tmp_path / "whole")


def test_while_it_compiles_a_run_ends_at_once(tmp_path: Path) -> None:
    # Nothing is compiled yet, so there is much to do before the first step.
    setup = config("tiny_googlenet", **STILL)
    fresh = {"quickly": False, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    process = start(*arguments(setup, tmp_path / "run"), **fresh)
    assert process.stderr is not None
    while "compiling ..." not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    code, errors = ended(process, within=5)
    print(f"ended after {time.monotonic() - asked:.1f} s")
    assert code == 128 + signal.SIGINT
    assert errors[-1].startswith(
        "SIGINT: nothing was saved before the first step; give the same command again, with --"
    )
    assert checkpoints(tmp_path / "run") == []


# Compiled code that does not come back; Python runs no signal handlers meanwhile.
BUSY = """
import sys
import jax
from jaxnets.training import interruption
interruption._SECONDS_TO_SAVE = float(sys.argv[1])
with interruption.Interruption() as asked:
    asked.can_save, asked.saved = True, sys.argv[2] == "saved"
    print("ready", file=sys.stderr, flush=True)
    jax.jit(lambda: jax.lax.while_loop(lambda x: x >= 0, lambda x: x * 0, 1))().block_until_ready()
"""


@pytest.mark.parametrize(
    ("seconds", "state", "signals", "code", "line"),
    [
        (60, "", (signal.SIGTERM, signal.SIGINT), 130, "ended by a second signal; the last checkpoint is kept"),
        # As while it writes the report.
        (1, "saved", (signal.SIGTERM,), 143, "SIGTERM: all is saved; the same command with --resume goes on"),
        pytest.param(
            *(1, "", (signal.SIGTERM,), 143, "could not save in time; the last checkpoint is kept"),
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_a_run_that_cannot_save_ends_all_the_same(
    seconds: float, state: str, signals: tuple[signal.Signals, ...], code: int, line: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(seconds), state], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    for number in signals:
        time.sleep(1.3)  # at once, two signals count as one
        process.send_signal(number)
    assert ended(process, within=5) == (code, ["", "SIGTERM: saving ...", line])


@pytest.mark.exhaustive
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ("--arch", "resnet20_cifar", "--image-size", 8, "--epochs", 30, "--batch-size", 100, "--log-every", 7)

    def started(workdir: Path) -> Process:
        return start(
            *words, "--workdir", workdir, "--resume", "--checkpoint-interval", 0.2,
            module="experiments.train", quickly=False,
        )  # fmt: skip

    assert ended(started(whole), within=300)[0] == 0
    newest, moved = 0, 0
    for kill in range(20):
        process = started(run)
        # Anywhere from the first import to the middle of a save, but soon, or the run is over before the last.
        if kill % 4 == 0:
            time.sleep(random.uniform(0, 8))
        else:
            wait_until(stepping(run), process)
            time.sleep(random.uniform(0, 1))
        committed = max(checkpoints(run), default=0)
        process.kill()
        assert ended(process, within=10)[0] == -signal.SIGKILL, "the run was over; this shows nothing"
        after = max(checkpoints(run), default=0)
        assert newest <= committed <= after
        moved += after > newest
        newest = after
    print(f"20 kills, {moved} of them after checkpoints of their own; the last was number {newest} of 432 and 30")
    assert ended(started(run), within=300)[0] == 0
    assert_same_run(run, whole)
