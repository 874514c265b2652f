"""One of two processes of a run is killed or stopped: the other ends and names it, and the run goes on later."""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

import experiments.train
from experiments.command import run as run_command
from jaxnets.ops.cpu import availability
from jaxnets.training import loop, parallel, trainer, watch
from jaxnets.training.checkpoint import Checkpoints
from jaxnets.training.parallel import Compiled, Parallel
from jaxnets.training.state import TrainState
from tests.faults.group import Group
from tests.faults.training_run import CONFIG, Child, fork
from tests.training.networks import DATASET, arguments, checkpoints, register

_SETUP = replace(CONFIG, recipe=replace(CONFIG.recipe, epochs=4))
_MOMENTS = ("at the start", "in compilation", "in a step", "in a save", "in an evaluation")
_STEPS = 16
_SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
# Of the watch and of JAX, in seconds; one case in eight has those that users have.
_QUICK = (5.0, 20)
_REAL = (watch._SECONDS_OF_SILENCE, parallel.SECONDS_OF_SILENCE)
_WITHOUT_WATCH = "JAXNETS_TEST_WITHOUT_WATCH"


def run(case: int, folder: Path) -> Mapping[str, int]:
    """Kills or stops one of two processes; the other has to end in time, and the run to resume."""
    chance = random.Random(case)
    how = [*_SIGNALS][case % 2]
    victim, moment, limits = chance.randrange(2), chance.choice(_MOMENTS), _REAL if case % 8 == 0 else _QUICK
    nth = chance.randint(1, {"in a step": _STEPS - 2, "in a save": 12, "in an evaluation": 4}.get(moment, 1))
    workdir = folder / "run"
    processes = _start(workdir, folder, limits, victim, partial(_signal_at, moment, nth, _SIGNALS[how]))
    other = processes[1 - victim]
    try:
        _wait_for(processes[victim], other)
        silent = time.monotonic()
        code = other.wait(30)
        seconds = time.monotonic() - silent
        lines = other.lines()
        assert code != 0
        assert seconds < 30
        assert not any("Traceback" in line for line in lines), lines[-5:]
        named = [line for line in lines if line.startswith(f"error: process {victim} of 2 has not answered")]
        if named:
            assert "after step" in named[0]
        else:
            # If process 0 is killed, JAX ends the others at once, with its own words.
            assert (victim, how) == (0, "killed"), lines[-5:]
            assert any("coordination service" in line for line in lines), lines[-5:]
    finally:
        for process in processes:
            process.signal(signal.SIGKILL)
            process.wait()
    before = checkpoints(workdir)
    processes = _start(workdir, folder, _REAL)
    ends = [process.wait(100) for process in processes]
    assert ends == [0, 0], (ends, [process.lines()[-3:] for process in processes])
    assert (workdir / "result.json").exists()
    assert max(checkpoints(workdir)) >= max(before, default=0)
    who = "named with its step" if named else "named by JAX as the leader task"
    return {f"process {victim}": 1, how: 1, moment: 1, who: 1, "ended within 1 s": int(seconds < 1), "resumed": 1}


def _wait_for(victim: Child, other: Child) -> None:
    """Until the victim is killed or stopped."""
    deadline = time.monotonic() + 100
    while not _is_gone(victim):
        assert time.monotonic() < deadline, victim.lines()[-3:]
        time.sleep(0.01)


def _is_gone(process: Child) -> bool:
    if process.poll() is not None:
        return True
    status = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return status == "T"


def _start(workdir: Path, folder: Path, limits: tuple[float, int], victim: int = -1, fault: Any = None) -> list[Child]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        fork(
            folder / f"{rank}.output",
            partial(_train, workdir, rank, address, limits, fault if rank == victim else lambda: None),
        )
        for rank in range(2)
    ]


def _train(workdir: Path, rank: int, address: str, limits: tuple[float, int], fault: Any) -> None:
    os.environ[availability.SWITCH] = "all"
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_num_cpu_devices", 1)
    register()
    watch._SECONDS_OF_SILENCE, parallel.SECONDS_OF_SILENCE = limits
    if _WITHOUT_WATCH in os.environ:
        watch._store = lambda: None
    experiments.train.train = partial(loop.train, dataset=DATASET)
    fault()
    words = ["--resume", "--parallel", "pmap", "--checkpoint-interval", "0", "--coordinator", address]
    words += ["--num-processes", "2", "--process-id", str(rank)]
    sys.argv = ["train", *arguments(_SETUP, workdir), *words]
    run_command(experiments.train.main)
    jax.distributed.shutdown()  # as at the end of a process that was not forked


def _signal_at(moment: str, nth: int, number: int) -> None:
    """Makes this process signal itself before the nth call of what a moment names."""
    place, name = {
        "at the start": (Parallel, "check_agreement"),
        "in compilation": (parallel, "compile"),
        "in a step": (Compiled, "__call__"),
        "in a save": (Checkpoints, "save"),
        "in an evaluation": (trainer.Evaluator, "__call__"),
    }[moment]
    call: Any = getattr(place, name)
    left = nth

    def signalled(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= moment != "in a step" or isinstance(arguments[1], TrainState)
        if left == 0:
            left = -1
            time.sleep(1)  # the others wait for this one now
            os.kill(os.getpid(), number)
        return call(*arguments, **keywords)

    setattr(place, name, signalled)


@contextmanager
def _unguarded() -> Iterator[None]:
    """Only JAX's own heartbeats are left."""
    os.environ[_WITHOUT_WATCH] = "1"
    try:
        yield
    finally:
        del os.environ[_WITHOUT_WATCH]


GROUP = Group(
    fault="one of two processes killed (SIGKILL) or stopped (SIGSTOP): at the start, in compilation, a step, a save, "
    "an evaluation",
    promise="the other ends within 30 s, not with 0, and names it; the run resumes and comes to its end",
    cases=50,
    run=run,
    unguarded=_unguarded,
    telling=(1, 3),
    seconds=300,
)
