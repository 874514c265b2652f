"""Files of a checkpoint cut short, emptied, deleted, made longer, or taken from another checkpoint."""

import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from jaxnets.training.checkpoint import Checkpoints
from tests.faults.damaged_checkpoint import check_damage, drop_some_checksums, inner_files, kind_of
from tests.faults.group import Group

_KINDS = ("cut short", "emptied", "deleted", "folder deleted", "taken from another checkpoint", "made longer")


def run(case: int, folder: Path) -> Mapping[str, int]:
    """Damages a file, or a folder, of the newer of two checkpoints."""
    chance = random.Random(case)
    kind, damaged = _KINDS[case // 20 % len(_KINDS)], ""

    def damage(older: Path, newer: Path) -> Path:
        nonlocal damaged
        drop_some_checksums(chance, older, newer)
        path = chance.choice([path for path in inner_files(newer) if path.stat().st_size])
        damaged, content = kind_of(path, newer), path.read_bytes()
        match kind:
            case "cut short":
                path.write_bytes(content[: chance.randrange(1, len(content)) if len(content) > 1 else 0])
            case "emptied":
                path.write_bytes(b"")
            case "deleted":
                path.unlink()
            case "folder deleted":
                inner = sorted(path for path in newer.rglob("*") if path.is_dir())
                shutil.rmtree(chance.choice(inner))
            case "made longer":
                path.write_bytes(content + chance.randbytes(chance.randint(1, 100)))
            case _:
                other = chance.choice([one for one in inner_files(older) if kind_of(one, older) == damaged])
                path.write_bytes(other.read_bytes())
        return newer

    try:
        return {kind: 1, **check_damage(folder, damage)}
    except Exception as error:
        raise AssertionError(f"{damaged}, {kind}: {type(error).__name__}: {error}") from error


@contextmanager
def _unguarded() -> Iterator[None]:
    """The first damaged checkpoint ends the run."""

    def end(self: Checkpoints, number: int, reason: Exception, say: object) -> None:
        raise reason

    with mock.patch.object(Checkpoints, "_move_aside", end):
        yield


GROUP = Group(
    fault="files of a checkpoint cut short, emptied, deleted, made longer, or taken from another checkpoint",
    promise="never silent: the arrays are those that were written, or the newest intact checkpoint is read",
    cases=300,
    run=run,
    unguarded=_unguarded,
    telling=tuple(range(5)),
)
