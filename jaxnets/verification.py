"""Whether files are as they were written: checkpoints, prepared records and weight files."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from jaxnets.data.records import holds_records, load_records
from jaxnets.data.sources import Source
from jaxnets.devices import devices
from jaxnets.errors import InputError
from jaxnets.weights.damage import damage_of
from jaxnets.weights.file_checksums import check_files
from jaxnets.weights.network_tensors import fault_of
from jaxnets.weights.runs import FOLDER, orbax_files
from jaxnets.weights.tensor_file import open_tensors

_SUFFIXES = (".safetensors", ".pth", ".pt")


class Item(NamedTuple):
    """Something to verify: `kind` is "checkpoint", "record" or "weight file".

    `check(index)`, for each index below `checks`, raises InputError, with the path, for what is damaged.
    """

    kind: str
    checks: int
    check: Callable[[int], object]


def items_in(path: Path) -> list[Item]:
    """What there is to verify in a folder and the folders in it, or a file of weights."""
    if path.is_file():
        return [_weight_file(path)]
    found: list[Item] = []
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        if holds_records(here):
            found += _records(here)
            folders.clear()
            continue
        if here.name == FOLDER:
            numbers = sorted(int(name) for name in folders if name.isdecimal())
            found += [Item("checkpoint", 1, partial(_check_checkpoint, here, number)) for number in numbers]
            folders.clear()
            continue
        folders[:] = sorted(set(folders) - {"damaged-checkpoints"})  # put aside, and named when that was done
        found += [_weight_file(here / name) for name in sorted(files) if name.endswith(_SUFFIXES)]
    return found


def faults_of(items: Sequence[Item], done: Callable[[int], None]) -> Iterator[str]:
    """A line for each fault; `done` is called with the number of checks so far."""
    checked = 0
    for item in items:
        for index in range(item.checks):
            try:
                item.check(index)
            except InputError as error:
                yield str(error)
            checked += 1
            done(checked)


def _check_checkpoint(folder: Path, number: int, _: int) -> None:
    devices()
    path = folder / str(number)
    try:
        check_files(path)
        with orbax_files().reader(folder.resolve()) as manager:
            orbax_files().check_arrays(manager, number)
    except Exception as error:  # orbax and tensorstore raise many types
        raise InputError(f"{path} is damaged: {damage_of(error, path)}") from None


def _records(folder: Path) -> list[Item]:
    try:
        parts: dict[str, Source] = load_records(folder).parts
    except InputError as error:
        return [Item("record", 1, partial(_refuse, str(error)))]
    return [Item("record", len(source), source.__getitem__) for source in parts.values()]


def _refuse(reason: str, _: int) -> None:
    raise InputError(reason)


def _weight_file(path: Path) -> Item:
    return Item("weight file", 1, partial(_check_weights, path))


def _check_weights(path: Path, _: int) -> None:
    with open_tensors(path) as tensors:
        for name in tensors:
            array = tensors[name]
            if jnp.issubdtype(array.dtype, jnp.floating) and (fault := fault_of(array)):
                raise InputError(f"{path} has a tensor {name} that {fault}")
