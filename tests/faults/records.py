"""Damaged prepared records: read as they were written, or refused with path and reason."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from jaxnets.data.records import RecordSource, load_records, write_records
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from tests.faults.group import Group

_KINDS = (
    "bit",
    "bits",
    "cut",
    "longer",
    "zeros",
    "gone",
    "of another set",
    "swapped",
    "moved",
    "pixels of another set",
)


def _source(seed: int, count: int) -> ArraySource:
    random_ = np.random.default_rng(seed)
    return ArraySource(
        random_.integers(0, 256, (count, 6, 7, 3)).astype(np.uint8), np.arange(count, dtype=np.int32) % 3
    )


@cache
def _written(seed: int) -> tuple[tempfile.TemporaryDirectory[str], list[Any]]:
    """Records of a set, and what is read from them."""
    folder = tempfile.TemporaryDirectory()
    dataset = Dataset(f"set {seed}", ("a", "b", "c"), _source(seed, 9), _source(seed + 1, 6), val=_source(seed + 2, 6))
    write_records(dataset, Path(folder.name, "records"), 6, lambda count: None)
    return folder, _read(Path(folder.name, "records"))


def _read(folder: Path) -> list[Any]:
    """All that records say."""
    dataset = load_records(folder)
    images = [
        (part, np.asarray(record.image).tobytes(), np.shape(record.image), record.label)
        for part, source in dataset.parts.items()
        for record in map(source.__getitem__, range(len(source)))
    ]
    return [dataset.name, dataset.class_names, dataset.mean, dataset.std, images]


def _damage(kind: str, folder: Path, chance: random.Random) -> None:
    other = Path(_written(10)[0].name, "records")
    path = chance.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    change: dict[str, Callable[[], object]] = {
        "cut": lambda: data.__delitem__(slice(at, None)),
        "longer": lambda: data.extend(chance.randbytes(chance.randint(1, 100))),
        "zeros": lambda: data.__setitem__(slice(at, at + 30), bytes(len(data[at : at + 30]))),
        "moved": lambda: data.__setitem__(slice(None), data[at:] + data[:at]),
    }
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else chance.randint(2, 9)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind in change:
        change[kind]()
    elif kind == "of another set":
        data[:] = (other / path.name).read_bytes()
    if kind == "gone":
        path.unlink()
    elif kind == "swapped":
        one, two = chance.sample(["train", "val", "test"], 2)
        suffix = chance.choice((".pixels", ".index"))
        (folder / (one + suffix)).rename(folder / "aside")
        (folder / (two + suffix)).rename(folder / (one + suffix))
        (folder / "aside").rename(folder / (two + suffix))
    elif kind == "pixels of another set":
        for pixels in other.glob("*.pixels"):
            shutil.copy(pixels, folder)
    else:
        path.write_bytes(data)


def _run(case: int, folder: Path) -> dict[str, int]:
    chance = random.Random(case)
    source, expected = _written(0)
    records = folder / "records"
    shutil.copytree(Path(source.name, "records"), records)
    _damage(chance.choice(_KINDS), records, chance)
    try:
        assert _read(records) == expected, "read other records than were written"
    except InputError as error:
        assert str(records) in str(error), str(error)
        assert "\n" not in str(error), str(error)
        assert ";" in str(error), f"does not say what to do: {error}"
        return {"refused with path and reason": 1}
    return {"read right": 1}


@contextmanager
def _unguarded() -> Iterator[None]:
    """The checksums of the pixels are not compared."""
    init = RecordSource.__init__

    def checked(self: RecordSource, *given: Any) -> None:
        init(self, *given)
        self._checked[:] = True

    with patch.object(RecordSource, "__init__", checked):
        yield


GROUP = Group(
    fault="500 damaged sets of prepared records: bits, cuts, zeros, swapped, missing and foreign files",
    promise="read right, or refused with path and reason",
    cases=500,
    run=_run,
    unguarded=_unguarded,
    telling=tuple(range(20)),
)
