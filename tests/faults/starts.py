"""Two runs that start at the same time in the same folder: they never share a workdir."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import experiments.train
import jaxnets.weights.checkpoint_files  # noqa: F401  (as the rest, imported once for all children)
from experiments.command import run
from jaxnets.training import new_workdir as module
from tests.faults.group import Group

_WORDS = ("train", "--arch", "tests.training.tiny:Tiny", "--image-size", "8", "--epochs", "1", "--batch-size", "64")
_WINDOW = 0.2  # seconds between the look and the creation, without the guard


def _run(case: int, folder: Path) -> Mapping[str, int]:
    random = Random(case)
    given = (case + case // 20) % 2 == 1
    words = [*_WORDS, "--platform", "cpu", *(["--workdir", "runs/mine"] if given else [])]
    begin = time.time() + 0.1
    apart = random.choice((0.0, 0.0, 0.0, 0.001, 0.01, 0.1))
    children = [_start(words, folder, number, begin + number * apart) for number in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [(folder / f"{number}.log").read_text() for number in range(2)]
    whole = sorted(path.parent.name for path in (folder / "runs").glob("*/result.json"))
    assert not any("Traceback" in text for text in said), said
    if not given:
        assert codes == [0, 0], f"a run was not whole: {said[codes.index(max(codes))][-500:]}"
        assert len(whole) == 2, f"two runs, but the results are in {whole}"
        return {"without --workdir: both whole": 1}
    assert sorted(codes) == [0, 2], f"the same --workdir, but the runs ended with {codes}: {said}"
    assert whole == ["mine"], f"the run is not whole: {whole}"
    errors = [line for line in said[codes.index(2)].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said[codes.index(2)]
    assert "runs/mine" in errors[0], errors[0]
    return {"the same --workdir: the second refused": 1}


def _start(words: list[str], folder: Path, number: int, begin: float) -> int:
    """A child that runs the command in `folder` from the time `begin` on, as its own process."""
    child = os.fork()
    if child:
        return child
    code: Any = 1
    try:
        os.chdir(folder)
        log = os.open(f"{number}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = words
        time.sleep(max(0.0, begin - time.time()))
        run(experiments.train.main)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _shared(config: Any) -> Path:
    """A folder for a run, which another may have created since it was seen to be missing."""
    path, number = Path("runs") / "run", 1
    while path.exists():
        number += 1
        path = Path("runs") / f"run-{number}"
    time.sleep(_WINDOW)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _unguarded() -> Iterator[None]:
    with mock.patch.object(module, "new_workdir", _shared):
        yield


GROUP = Group(
    fault="two runs that start at the same time in the same folder",
    promise="they never share a workdir; both are whole, or the second is refused in one line",
    cases=20,
    run=_run,
    unguarded=_unguarded,
    telling=(0, 2, 4),
)
