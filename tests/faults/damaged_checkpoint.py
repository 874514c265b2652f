"""A run with damaged checkpoints, read as `--resume` and as evaluation read it: exactly, or from the intact one."""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np

from jaxnets.errors import InputError
from jaxnets.training.checkpoint import Checkpoints
from jaxnets.training.parallel import Parallel
from jaxnets.training.setup import Setup, set_up
from jaxnets.training.state import TrainState, create_state
from jaxnets.weights import checkpoint_files, file_checksums
from jaxnets.weights.runs import read_run
from tests.faults.training_run import CONFIG, cache_folder, start
from tests.training.networks import DATASET, checkpoints, register


@dataclass(frozen=True)
class _Written:
    """What a checkpoint holds: the state, the run's position, and the variables that evaluation reads."""

    state: bytes
    position: dict[str, Any]
    variables: bytes


@cache
def _setup() -> tuple[Setup, TrainState]:
    # The run trains in a child process, before this one computes anything. It saves at the end of its two epochs.
    child = start(_folder(), interval=1000)
    assert child.wait() == 0, child.lines()[-3:]
    register()
    run = set_up(CONFIG, DATASET, Parallel.choose("jit"), quiet=True)
    size, frozen = CONFIG.recipe.image_size, run.frozen
    ema = CONFIG.recipe.ema_decay > 0
    return run, create_state(
        run.network, run.optimizer, CONFIG.seed, size, ema=ema, frozen=frozen, declared=run.declared
    )


def _folder() -> Path:
    return cache_folder() / "whole"


@cache
def _written() -> dict[int, _Written]:
    """What each checkpoint of the run holds."""
    _setup()
    folder, found = _folder(), {}
    for number in checkpoints(folder):
        alone = folder.with_name(f"checkpoint-{number}")
        shutil.copytree(folder / "checkpoints" / str(number), alone / "checkpoints" / str(number))
        state, position = _resumed(alone, [])
        found[number] = _Written(_bytes(state), position, _bytes(read_run(alone, "latest").variables))
    return found


def _resumed(workdir: Path, said: list[str]) -> tuple[TrainState, dict[str, Any]]:
    run, like = _setup()
    with Checkpoints(workdir, run.contents) as files:
        restored = files.restore(like, said.append)
    assert restored is not None, "nothing was restored"
    return restored


def _bytes(tree: Any) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def check_damage(folder: Path, damage: Callable[[Path, Path], Path]) -> Mapping[str, int]:
    """Damages one of the two checkpoints of a run, and reads it.

    `damage` gets the folders of the older and of the newer one, and returns the one that it has damaged.
    """
    written, workdir = _written(), folder / "run"
    older, newer = sorted(written)[-2:]
    shutil.copytree(_folder() / "checkpoints", workdir / "checkpoints")
    damaged = int(damage(workdir / "checkpoints" / str(older), workdir / "checkpoints" / str(newer)).name)
    counts = _check_evaluation(workdir, damaged, newer)
    said: list[str] = []
    state, position = _resumed(workdir, said)
    number = next((number for number, one in written.items() if one.position == position), None)
    assert number is not None, f"resumed from {position}, which nothing has written"
    assert _bytes(state) == written[number].state, f"checkpoint {number} was restored with other arrays"
    if number == newer:
        return counts | {"resumed from it" if damaged == newer else "resumed from the one after it": 1}
    assert damaged == newer, f"resumed from checkpoint {number}, though {newer} is intact"
    assert [line.partition(" is damaged (")[0] for line in said] == [f"warning: checkpoint {newer}"], said
    assert (workdir / "damaged-checkpoints" / str(newer)).is_dir(), "the damaged checkpoint is gone"
    return counts | {"fell back": 1}


def _check_evaluation(workdir: Path, damaged: int, newer: int) -> dict[str, int]:
    written, refused, variables = _written(), "", b""
    try:
        variables = _bytes(read_run(workdir, "latest").variables)
    except InputError as error:
        refused = str(error)
    if refused:
        assert damaged == newer, f"refused, though the latest is intact: {refused}"
        assert f"{newer}, is damaged" in refused, refused
        assert "--checkpoint intact" in refused, refused
        assert "\n" not in refused, refused
    else:
        assert variables == written[newer].variables, "evaluation reads other arrays than were written"
    intact = _bytes(read_run(workdir, "intact").variables)
    expected = min(written) if refused else newer
    assert intact == written[expected].variables, f"the intact checkpoint is {expected}, and another was read"
    if refused:
        return {"evaluation refused it": 1}
    return {"evaluation read it exactly": 1} if damaged == newer else {}


def drop_some_checksums(chance: random.Random, *checkpoints: Path) -> None:
    """In one of five cases, removes the checksums of files, as if the run had been killed before it wrote them."""
    if chance.randrange(5) == 0:
        for checkpoint in checkpoints:
            (checkpoint / file_checksums.NAME).unlink()


def inner_files(checkpoint: Path) -> list[Path]:
    """All files of a checkpoint, in order of their kinds, not of their random names."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (kind_of(path, checkpoint), path.stat().st_size, path.read_bytes()))


def kind_of(path: Path, checkpoint: Path) -> str:
    """The place of a file; those of data have random names."""
    place = path.relative_to(checkpoint)
    return (place.parent / "data" if place.parent.name == "d" else place).as_posix()


@contextmanager
def without_checksums() -> Iterator[None]:
    """Every checksum is 0."""
    none = SimpleNamespace(crc32=lambda *_: 0)
    with mock.patch.object(checkpoint_files, "zlib", none), mock.patch.object(file_checksums, "zlib", none):
        yield
