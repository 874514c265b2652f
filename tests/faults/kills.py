"""SIGKILL in each phase of a save and at random moments, up to three in a row; then the run goes on to its end."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from jaxnets.training import start as start_module
from jaxnets.training.run_log import Position
from tests.faults.group import Group
from tests.faults.training_run import (
    STEPS,
    Moment,
    check_end,
    check_samples,
    committed,
    left_alone,
    recorded_steps,
    start,
)

_TEMPORARY = r"checkpoints/\d+\.orbax-checkpoint-tmp"
_ITEM = rf"{_TEMPORARY}/(variables|training)\.orbax-checkpoint-tmp"
# The moment before which the process is killed, and the largest number of it that each run meets.
_PHASES: dict[str, tuple[Moment, int]] = {
    "before the temporary folder": (Moment("os.mkdir", rf"{_TEMPORARY}$"), STEPS),
    "before the metadata": (Moment("open", rf"{_TEMPORARY}/metadata\.orbax-checkpoint-tmp/metadata$"), STEPS),
    "as arrays are written": (Moment("os.mkdir", rf"{_ITEM}$"), STEPS),
    "before the description of the arrays": (Moment("open", rf"{_ITEM}/_METADATA$"), STEPS),
    "before a part is complete": (Moment("os.rename", rf"{_TEMPORARY}/\w+\.orbax-checkpoint-tmp$"), STEPS),
    "before the commit": (Moment("os.rename", rf"{_TEMPORARY}$"), STEPS),
    "after the commit, before old ones are deleted": (Moment("shutil.rmtree", r"checkpoints/\d+$"), STEPS - 4),
    "as old ones are deleted": (Moment("shutil.rmtree", r"checkpoints/\d+$"), STEPS - 4),
    "in metrics.jsonl": (Moment("open", r"metrics\.jsonl$"), STEPS),
    "in result.json": (Moment("open", r"result\.new$"), 1),
    "before result.json is in its place": (Moment("os.rename", r"result\.new$"), 1),
    "in predictions.csv": (Moment("open", r"predictions\.csv$"), 1),
    "in report.html": (Moment("open", r"report\.html\.new$"), 1),
}
_CASES = 200
_EACH = 10
_RANDOM = "at a random moment"
_KINDS = [*_PHASES] * _EACH + [_RANDOM] * (_CASES - _EACH * len(_PHASES))
random.Random(0).shuffle(_KINDS)  # so that each share of the cases has many kinds
_COMMANDS = 3  # one in so many of the random moments is in the real command, from its first import on


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_in(phase: str, nth: int, chance: random.Random, workdir: Path) -> Callable[[], None]:
    """What makes a process kill itself the nth time that it is in a phase."""
    moment, _ = _PHASES[phase]
    moment = Moment(moment.event, moment.path, nth)
    match phase:
        case "as arrays are written":
            files = chance.randint(1, 3)
            return lambda: moment(lambda: threading.Thread(target=_kill_when_written, args=(workdir, files)).start())
        case "as old ones are deleted":
            deletions = chance.randint(1, 20)
            return lambda: moment(lambda: Moment("os.remove", "", deletions)(_kill))
        case "in metrics.jsonl" | "in result.json" | "in predictions.csv" | "in report.html":
            name = phase.removeprefix("in ")
            name = {"result.json": "result.new", "report.html": "report.html.new"}.get(name, name)
            return lambda: moment(lambda: _kill_in_the_middle_of(workdir / name))
    return lambda: moment(_kill)


def _kill_when_written(workdir: Path, files: int) -> None:
    """Kills this process when there are so many files beside those that a checkpoint begins with."""
    while sum(path.is_file() for path in workdir.glob("checkpoints/*-tmp/**/*")) < 3 + files:
        time.sleep(0.0005)
    _kill()


def _kill_in_the_middle_of(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"split": "tr')
    _kill()


def run(case: int, folder: Path) -> Mapping[str, int]:
    """Kills a run one to three times; each time it goes on from the newest complete checkpoint."""
    chance, kind, workdir, length = random.Random(case), _KINDS[case], folder / "run", left_alone()
    kills, counts = 0, {kind: 1, "restarts": 0, "steps taken again": 0}
    plan = [_RANDOM] * chance.choice((0, 0, 1) if kind != _RANDOM else (0, 1, 2)) + [kind]
    before, command = 0, kind == _RANDOM and case % _COMMANDS == 0
    while True:
        newest, step = committed(workdir)
        assert newest >= before, f"checkpoint {before} was complete, and now the newest is {newest}"
        taken, finished = len(recorded_steps(workdir)), (workdir / "result.json").exists()
        before, phase = newest, plan[kills] if kills < len(plan) else None
        if phase is None:
            child = start(workdir)
        elif phase == _RANDOM:
            # The command's imports take about as long as a run.
            child = start(workdir, command=command)
            latest = length * (2 if command else 1) if kind == _RANDOM else 0.7 * length
            time.sleep(chance.uniform(0, latest / len(plan)))
            child.signal(signal.SIGKILL)
        else:
            # Those that earlier kills have left come as well.
            most = min(_PHASES[phase][1], STEPS - step)
            most = max(1, most - 3 if "old ones" in phase and step else most)
            child = start(workdir, fault=_killed_in(phase, chance.randint(1, most), chance, workdir))
        code = child.wait()
        again = recorded_steps(workdir)[taken:]
        if again and not finished:
            assert again[0][0] == step, f"went on with step {again[0][0]}, though {step} steps were committed"
        reached = max((number for number, _ in recorded_steps(workdir)[:taken]), default=-1)
        counts["steps taken again"] += sum(number <= reached for number, _ in again)
        counts["restarts"] += kills > 0
        if phase is None:
            break
        kills += 1
        if code == 0 and (phase == _RANDOM or finished):
            continue  # the run was over before
        assert code == -signal.SIGKILL, f"{phase}: ended with {code}: {child.lines()[-3:]}"
    assert code == 0, f"the restart ended with {code}: {child.lines()[-3:]}"
    check_samples(workdir)
    check_end(workdir)
    return counts | {"kills": kills}


@contextmanager
def _unguarded() -> Iterator[None]:
    """A resumed run has its state again, but does not know how far it was."""
    with mock.patch.object(start_module, "Position", _Forgotten):
        yield


class _Forgotten(Position):
    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Position:
        """The position of a new run."""
        return Position()


GROUP = Group(
    fault="SIGKILL in each phase of a save and at random moments, up to three in a row",
    promise="0 committed steps lost, each image once an epoch, the end byte-identical to the run left alone",
    cases=_CASES,
    run=run,
    unguarded=_unguarded,
    telling=tuple(case for case, kind in enumerate(_KINDS) if kind == "before the commit")[:3],
)
