"""SIGTERM and SIGINT in each part of a run: it saves, ends in time, says what is true, and goes on to the same end."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from jaxnets.training import parallel, setup
from jaxnets.training.interruption import Interrupted
from jaxnets.training.state import TrainState
from jaxnets.training.trainer import Trainer
from tests.faults.group import Group
from tests.faults.training_run import (
    STEPS,
    Child,
    Moment,
    check_end,
    check_samples,
    committed,
    fork,
    left_alone,
    recorded_steps,
    start,
)

_SECONDS = 10.0
_PARTS = ("imports", "data check", "compilation", "step", "val", "test", "save", "end")
_CASES = 100
_KINDS = [_PARTS[case % len(_PARTS)] for case in range(_CASES)]
random.Random(0).shuffle(_KINDS)  # so that each share of the cases has many kinds
_BATCHES = 2  # of each evaluation
_TEMPORARY = r"checkpoints/\d+\.orbax-checkpoint-tmp"
_IN_SAVE = (
    Moment("os.mkdir", rf"{_TEMPORARY}$"),
    Moment("open", rf"{_TEMPORARY}/metadata\.orbax-checkpoint-tmp/metadata$"),
    Moment("open", rf"{_TEMPORARY}/variables\.orbax-checkpoint-tmp/_METADATA$"),
    Moment("os.rename", rf"{_TEMPORARY}$"),
)
_AT_END = (
    Moment("open", r"predictions\.csv$"),
    Moment("open", r"samples/.*\.png$"),
    Moment("open", r"result\.new$"),
    Moment("os.rename", r"result\.new$"),
    Moment("open", r"report\.html\.new$"),
    Moment("os.rename", r"report\.html\.new$"),
)
_NOTHING = "nothing was saved before the first step; give the same command again, with --resume if it has a --workdir"
_ALL = "all is saved; the same command with --resume goes on"


def _in_part(part: str, chance: random.Random, send: Callable[[], None]) -> Callable[[], None]:
    """What makes a process send itself a signal in a part of the run."""
    match part:
        case "data check":
            return lambda: _before(setup, "verify", 1, send)
        case "compilation":
            return partial(_before, parallel, "compile", chance.choice((1, 2)), send)
        case "step":
            return partial(_before_call, chance.randint(1, STEPS // 2), send, steps=True)
        case "val":
            return partial(_before_call, chance.randint(1, _BATCHES), send, steps=False)
        case "test":
            return partial(_before_call, 2 * _BATCHES + chance.randint(1, _BATCHES), send, steps=False)
        case "save":
            return partial(chance.choice(_IN_SAVE), send)
    return partial(chance.choice(_AT_END), send)


def _before(module: Any, name: str, nth: int, send: Callable[[], None]) -> None:
    """Sends the signal before the nth call of a function of a module."""
    function, calls = getattr(module, name), iter(range(1, 1000))

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == nth:
            send()
        return function(*arguments, **options)

    setattr(module, name, called)


def _before_call(nth: int, send: Callable[[], None], *, steps: bool) -> None:
    """Sends the signal before the nth step, or the nth batch of an evaluation."""
    call, calls = parallel.Compiled.__call__, iter(range(1, 1000))

    def called(self: parallel.Compiled, replicated: Any, batch: Any) -> Any:
        if isinstance(replicated, TrainState) == steps and next(calls) == nth:
            send()
        return call(self, replicated, batch)

    parallel.Compiled.__call__ = called  # type: ignore[method-assign]


def _send(number: int, times: int, note: Path) -> None:
    note.write_text(str(time.monotonic()))
    for _ in range(times):
        os.kill(os.getpid(), number)


def _imports(workdir: Path, number: int, chance: random.Random, note: Path) -> Child:
    """The real command gets a signal in its imports; it would not write anything even if it came to its end."""
    words = ["-m", "experiments.train", "--arch", "resnet18", "--workdir", str(workdir), "--dry-run"]
    child = fork(workdir.with_suffix(".output"), lambda: os.execv(sys.executable, [sys.executable, *words]))
    while "numpy" not in Path(f"/proc/{child.pid}/maps").read_text():
        assert child.poll() is None, child.lines()
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.6))
    note.write_text(str(time.monotonic()))
    child.signal(number)
    return child


def _interrupt(part: str, number: int, workdir: Path, chance: random.Random) -> float:
    """One interruption of the run, checked; the seconds until its end."""
    note, taken = workdir.with_suffix(".sent"), len(recorded_steps(workdir))
    if part == "imports":
        child = _imports(workdir, number, chance, note)
    else:
        # Launchers signal a process and then its group.
        send = partial(_send, number, chance.choice((1, 1, 2)), note)
        interval = 0.0 if part == "save" else 1000.0
        child = start(workdir, fault=_in_part(part, chance, send), interval=interval)
    code, lines = child.wait(), child.lines()
    assert note.exists(), f"{part} did not come: {lines[-3:]}"
    seconds = time.monotonic() - float(note.read_text())
    note.unlink()
    assert seconds <= _SECONDS, f"{part}: took {seconds:.1f} s to end"
    assert not any("Traceback" in line for line in lines), "\n".join(lines)
    steps = len(recorded_steps(workdir))
    if part == "imports":
        # As a shell has it, this is 128 plus the number of the signal too.
        assert code in (-number, 128 + number), f"{part}: ended with {code}"
        assert not workdir.exists(), "a dry run left a folder"
    else:
        assert code == 128 + number, f"{part}: ended with {code}: {lines[-3:]}"
        true = _NOTHING if steps == taken and part in ("data check", "compilation", "step") else _ALL
        assert lines[-1] == f"{signal.Signals(number).name}: {true}", f"{part}: {lines[-3:]}"
    assert committed(workdir)[1] == steps, f"{part}: {steps} steps were taken, {committed(workdir)[1]} are saved"
    return seconds


def run(case: int, folder: Path) -> Mapping[str, int]:
    """Interrupts a run, in some cases twice; no step is ever taken again."""
    chance, part, workdir = random.Random(case), _KINDS[case], folder / "run"
    number = chance.choice((signal.SIGTERM, signal.SIGINT))
    left_alone()
    counts = {f"in {part}" if part != "end" else "at the end": 1, signal.Signals(number).name: 1}
    if part in ("data check", "save", "end") and chance.random() < 0.5:  # the run that is interrupted has been before
        counts["interrupted twice"] = 1
        _interrupt("step", signal.SIGTERM, workdir, chance)
    seconds = _interrupt(part, number, workdir, chance)
    for limit in (1, 3):
        counts[f"ended within {limit} s"] = int(seconds <= limit)
    child = start(workdir, interval=1000)
    assert child.wait() == 0, f"the resumed run: {child.lines()[-3:]}"
    assert [step for step, _ in recorded_steps(workdir)] == list(range(STEPS)), "a step was taken twice"
    check_samples(workdir)
    check_end(workdir)
    return counts


@contextmanager
def _unguarded() -> Iterator[None]:
    """A run that is asked to end does not save."""

    def end(self: Trainer, _: int = 0) -> None:
        if self._interruption.requested is not None:
            raise Interrupted(self._interruption.requested)

    with mock.patch.object(Trainer, "_stop_if_asked", end):
        yield


GROUP = Group(
    fault="SIGTERM and SIGINT in imports, data check, compilation, step, val, test, save and at the end",
    promise="0 steps lost, exit code 143 or 130, at most 10 s, a true last line, the end byte-identical",
    cases=_CASES,
    run=run,
    unguarded=_unguarded,
    telling=tuple(case for case, part in enumerate(_KINDS) if part == "step")[:3],
)
