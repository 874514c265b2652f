"""A disk that is full, fails, can't be written or loses a folder, at different points of a run; then it works again."""

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from jaxnets.training.checkpoint import Checkpoints
from tests.faults.group import Group
from tests.faults.training_run import (
    Moment,
    check_end,
    check_samples,
    committed,
    left_alone,
    left_alone_folder,
    recorded_steps,
    start,
)

_TEMPORARY = r"checkpoints/\d+\.orbax-checkpoint-tmp"
# The moment at which the disk fails, and the largest number of it that each run meets.
_POINTS: dict[str, tuple[Moment, int]] = {
    "config.json": (Moment("open", r"config\.new$"), 1),
    "the folder of a checkpoint": (Moment("os.mkdir", rf"{_TEMPORARY}$"), 8),
    "the metadata of a checkpoint": (Moment("open", rf"{_TEMPORARY}/metadata\.orbax-checkpoint-tmp/metadata$"), 8),
    "the description of the arrays": (Moment("open", rf"{_TEMPORARY}/\w+\.orbax-checkpoint-tmp/_METADATA$"), 8),
    "the commit of a checkpoint": (Moment("os.rename", rf"{_TEMPORARY}$"), 8),
    "metrics.jsonl": (Moment("open", r"metrics\.jsonl$"), 8),
    "predictions.csv": (Moment("open", r"predictions\.csv$"), 1),
    "samples": (Moment("open", r"samples/.*\.png$"), 1),
    "result.json": (Moment("open", r"result\.new$"), 1),
    "report.html": (Moment("open", r"report\.html\.new$"), 1),
}
_ERRORS = {
    "full": (errno.ENOSPC, errno.EDQUOT),
    "failing": (errno.EIO,),
    "read-only": (errno.EROFS, errno.EACCES),
}
_SMALL = "a small disk"
_LIMIT = "a limit of the size of files"  # reaches the code below Python as well, as a small disk does
_GONE = "folder gone"
_FAULTS = (*_ERRORS, _SMALL, _LIMIT, _GONE)
_CASES = 50
_KINDS = [_FAULTS[case % len(_FAULTS)] for case in range(_CASES)]
random.Random(0).shuffle(_KINDS)  # so that each share of the cases has many kinds


def _fails(workdir: Path, number: int, moment: Moment) -> Callable[[], None]:
    """From a moment on, no file or folder of the run can be written: each try gets an error of the system."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        written = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (written or event in ("os.mkdir", "os.rename")) and str(arguments[0]).startswith(str(workdir)):
            raise OSError(number, os.strerror(number), str(arguments[0]))

    def begin() -> None:
        sys.addaudithook(hook)

    return lambda: moment(begin)


def _limited(size: int, moment: Moment) -> Callable[[], None]:
    """From a moment on, no file can become larger than this."""
    return lambda: moment(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


def _mount(workdir: Path, size: int, *options: str) -> bool:
    """Makes a folder a disk of this size; False where that is not allowed."""
    workdir.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", str(workdir)]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _away(workdir: Path) -> Path:
    return workdir.with_name("away")


def run(case: int, folder: Path) -> Mapping[str, int]:
    """The disk fails at one point of a run, which ends with one line; when it works again, the run goes on."""
    try:
        return _run(case, folder / "run")
    finally:
        if os.path.ismount(folder / "run"):
            subprocess.run(["umount", "--lazy", str(folder / "run")], check=True)


def _run(case: int, workdir: Path) -> Mapping[str, int]:
    chance, kind = random.Random(case), _KINDS[case]
    left_alone()
    point = chance.choice(sorted(_POINTS))
    if kind in (_SMALL, _LIMIT):
        point = "the folder of a checkpoint"
    moment, most = _POINTS[point]
    moment = Moment(moment.event, moment.path, chance.randint(1, most))
    if kind == _SMALL:
        needed = sum(path.stat().st_blocks for path in left_alone_folder().rglob("*")) * 512
        size = chance.randint(needed // 20, needed * 9 // 10)
        kind = _SMALL if _mount(workdir, size) else _LIMIT
    if kind == _SMALL:
        fault: Callable[[], None] = lambda: None  # noqa: E731
    elif kind in _ERRORS:
        fault = _fails(workdir, chance.choice(_ERRORS[kind]), moment)
    elif kind == _LIMIT:
        fault = _limited(chance.randint(2500, 3900), moment)
    else:
        gone = chance.choice((workdir, workdir / "checkpoints")) if "checkpoint" in point else workdir
        fault = lambda: moment(lambda: gone.rename(_away(workdir)))  # noqa: E731
    child = start(workdir, fault=fault)
    code, lines = child.wait(), child.lines()
    where = f"{kind} at {point} {moment.nth}"
    if kind == _GONE:
        assert _away(workdir).exists(), f"{where}: the folder did not go"
        shutil.rmtree(gone, ignore_errors=True)
        _away(workdir).rename(gone)
    assert code == 2, f"{where}: ended with {code}: {lines[-3:]}"
    assert not any("Traceback" in line or "Exception ignored" in line for line in lines), where + "\n".join(lines)
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], f"{where}: {lines[-3:]}"
    left = [path.name for path in (workdir / "checkpoints").glob("*-tmp")]
    assert not left or kind == _GONE, f"{where}: left {left}"
    if kind == _SMALL:
        assert _mount(workdir, needed * 10, "remount")
    number, step = committed(workdir)
    taken = len(recorded_steps(workdir))
    assert number > 0 or taken <= 2, f"{where}: no checkpoint is left of {taken} steps"
    child = start(workdir)
    assert child.wait() == 0, f"{where}: the resumed run: {child.lines()[-3:]}"
    again = recorded_steps(workdir)[taken:]
    assert not again or again[0][0] == step, f"{where}: went on with step {again[0][0]}, though {step} were committed"
    check_samples(workdir)
    check_end(workdir)
    part = "at a checkpoint" if "checkpoint" in point or "arrays" in point else f"at {point}"
    return {kind: 1, part: 1, "reported in one line": 1, "resumed to the same end": 1}


@contextmanager
def _unguarded() -> Iterator[None]:
    """What could not be written whole is left."""
    with mock.patch.object(Checkpoints, "_remove_unfinished", return_value=None):
        yield


GROUP = Group(
    fault="disk full, failing or read-only, and folders that go, at different points of a run",
    promise="one line, no traceback, good checkpoints kept, no temporary folder left, the end byte-identical",
    cases=_CASES,
    run=run,
    unguarded=_unguarded,
    telling=tuple(case for case, kind in enumerate(_KINDS) if kind == _LIMIT)[:3],
)
