"""A run in a process of its own, with faults at given moments; and the same run left alone, to compare with.

`python -m tests.faults.training_run WORKDIR RECORD` is the command, from its first import on. Cases are quicker by
`fork`, as the worker has imported everything; it must not compute anything itself.
"""

import atexit
import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401
import numpy as np

import experiments.train
import jaxnets.weights.checkpoint_files  # noqa: F401
from experiments.command import run
from jaxnets.data.sources import Dataset
from jaxnets.ops.cpu import availability
from jaxnets.training import loop
from jaxnets.training.parallel import Compiled
from jaxnets.training.state import TrainState
from tests.training.networks import DATASET, STILL, arguments, assert_same_run, checkpoints, config, register

CONFIG = config(**{**STILL, "flip": 0.5, "dropout_rate": 0.3}, epochs=2)
IMAGES = len(DATASET.train)
STEPS = -(-2 * IMAGES // CONFIG.recipe.batch_size)
Fault = Callable[[], object]


@dataclass(frozen=True)
class Moment:
    """An operation on a file, as Python's audit events name it, whose path matches a pattern; the nth one."""

    event: str
    path: str
    nth: int = 1

    def __call__(self, act: Fault) -> None:
        """Does `act` in this process just before the operation."""
        left = [self.nth]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event != self.event or left[0] == 0 or not re.search(self.path, str(arguments[0])):
                return
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
            left[0] -= 1
            if left[0] == 0:
                act()

        sys.addaudithook(hook)


@dataclass
class Child:
    """A process whose output is in a file."""

    pid: int
    output: Path
    started: float = field(default_factory=time.monotonic)

    def signal(self, number: int) -> None:
        """Sends a signal, if the process is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        if "code" not in self.__dict__:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return None
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 100) -> int:
        """The exit code, once the process has ended."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"the process has not ended after {seconds:g} s: {self.lines()[-3:]}")
            time.sleep(0.002)
        return code

    def lines(self) -> list[str]:
        """What it has printed."""
        return self.output.read_text(errors="replace").splitlines()


def fork(output: Path, function: Callable[[], object]) -> Child:
    """Calls a function in a child process; the exit code is 1 after an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, output)
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)
        function()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(
    workdir: Path, *, fault: Fault = lambda: None, command: bool = False, interval: float = 0, data: Dataset = DATASET
) -> Child:
    """Starts or resumes the run in `workdir`; `fault` prepares what happens to it.

    It saves after each step. With `command` it is the real command, from its first import on.
    """
    record = workdir.with_suffix(".steps")

    def train() -> None:
        if command:
            words = [sys.executable, "-m", "tests.faults.training_run", str(workdir), str(record)]
            os.execv(sys.executable, words)
        fault()
        _train(workdir, record, interval, data)

    return fork(workdir.with_suffix(".output"), train)


def _train(workdir: Path, record: Path, interval: float = 0, data: Dataset = DATASET) -> None:
    # As in the other tests: what is computed on all platforms, quickly compiled.
    os.environ[availability.SWITCH] = "all"
    jax.config.update("jax_disable_most_optimizations", True)
    register()
    _record_steps(record)
    experiments.train.train = partial(loop.train, dataset=data)
    words = ["--resume", "--parallel", "jit", "--checkpoint-interval", str(interval)]
    sys.argv = ["train", *arguments(CONFIG, workdir), *words]
    run(experiments.train.main)


def _record_steps(path: Path) -> None:
    """Writes each step that is taken and the images that it sees, which are known by their pixels."""
    call = Compiled.__call__
    known = {np.asarray(DATASET.train[index].image).tobytes(): index for index in range(IMAGES)}

    def recorded(self: Compiled, replicated: Any, batch: Any) -> Any:
        if not isinstance(replicated, TrainState):
            return call(self, replicated, batch)
        step, seen = int(replicated.step), np.asarray(batch.images)[np.asarray(batch.mask)]
        results = call(self, replicated, batch)
        with path.open("a") as file:
            file.write(json.dumps([step, [known[image.tobytes()] for image in seen]]) + "\n")
        return results

    Compiled.__call__ = recorded  # type: ignore[method-assign]


def recorded_steps(workdir: Path) -> list[tuple[int, list[int]]]:
    """The steps that the run in `workdir` has taken, in order, each with its images."""
    path = workdir.with_suffix(".steps")
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def committed(workdir: Path) -> tuple[int, int]:
    """The number of the newest complete checkpoint, and the steps before it; 0 and 0 if there is none."""
    number = max(checkpoints(workdir), default=0)
    if number == 0:
        return 0, 0
    metadata = json.loads((workdir / "checkpoints" / str(number) / "metadata" / "metadata").read_text())
    return number, metadata["position"]["step"]


def check_samples(workdir: Path) -> None:
    """The last time that each step was taken, each image was seen exactly once an epoch."""
    steps: Mapping[int, list[int]] = dict(recorded_steps(workdir))
    assert sorted(steps) == list(range(STEPS)), f"steps {sorted(steps)} of {STEPS}"
    seen = [index for step in range(STEPS) for index in steps[step]]
    for epoch in range(CONFIG.recipe.epochs):
        images = seen[epoch * IMAGES : (epoch + 1) * IMAGES]
        assert sorted(images) == list(range(IMAGES)), f"epoch {epoch + 1} saw images {sorted(images)}"


def check_end(workdir: Path) -> None:
    """The end of the run is byte-identical to that of the run left alone, and no temporary file is left."""
    temporary = [path.name for path in workdir.rglob("*") if path.name.endswith(("-tmp", ".new"))]
    assert not temporary, f"left: {temporary}"
    assert (workdir / "report.html").read_text().rstrip().endswith("</html>"), "report.html is not whole"
    child = fork(workdir.with_suffix(".compared"), lambda: assert_same_run(workdir, left_alone_folder()))
    assert child.wait() == 0, "\n".join(child.lines()[-3:])


@cache
def cache_folder() -> Path:
    """A folder of this worker, for runs that its cases share."""
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / f"runs-of-{_worker}"
    folder.mkdir(parents=True, exist_ok=True)
    if os.getpid() == _worker:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def left_alone_folder() -> Path:
    """The folder of this worker's run that is left alone; `left_alone` makes it."""
    return cache_folder() / "left-alone"


@cache
def left_alone() -> float:
    """Trains the run to compare with, once in this worker; the seconds that takes."""
    child = start(left_alone_folder())
    assert child.wait() == 0, child.lines()[-3:]
    check_samples(left_alone_folder())
    return time.monotonic() - child.started


_worker = os.getpid()  # also in its children

if __name__ == "__main__":
    _train(Path(sys.argv[1]), Path(sys.argv[2]))
