"""The files of checkpoints, by orbax: named arrays, JSON metadata, and checksums of both."""

import json
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxnets.errors import InputError
from jaxnets.weights.file_checksums import DamagedError
from jaxnets.weights.folder_path import open_folder

# orbax reports each of its steps through absl, and each failure at length. Other records of absl pass.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)

_SAME_SETTINGS = "use it with the network, optimizer and JAX settings of its run"


class Manager(ocp.CheckpointManager):
    """orbax's manager of an existing folder whose path may have any characters."""

    def __init__(self, folder: Path, options: ocp.CheckpointManagerOptions) -> None:
        path, self._opened_folder = open_folder(folder)
        try:
            super().__init__(path, options=options)
        except BaseException:
            self._close_folder()
            raise

    def close(self) -> None:
        """Waits for the checkpoint in progress, and closes the folder."""
        try:
            super().close()
        finally:
            self._close_folder()

    def _close_folder(self) -> None:
        descriptor, self._opened_folder = self._opened_folder, None
        if descriptor is not None:
            os.close(descriptor)


def writer(folder: Path, best: Callable[[], int | None]) -> Manager:
    """A manager that writes to an existing folder in the background, and keeps the two latest and number `best()`."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_LatestAndBest(best), cleanup_tmp_directories=True, create=False
    )
    return Manager(folder, _alone(options))


def reader(folder: Path) -> Manager:
    """A manager that reads from an existing folder and changes nothing."""
    # Without all of these options orbax warns.
    options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    return Manager(folder, _alone(options))


def write(manager: ocp.CheckpointManager, number: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Starts to write named trees of arrays and JSON metadata, with checksums of both.

    Raises ValueError if there is a checkpoint with a later number.
    """
    metadata = metadata | {"array_checksums": {name: _checksum(tree) for name, tree in items.items()}}
    metadata["checksum"] = _checksum_of_json(metadata)
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    if not manager.save(number, args=ocp.args.Composite(**arrays, metadata=ocp.args.JsonSave(metadata))):
        # orbax skips numbers before the latest one.
        raise ValueError(f"checkpoint {number} is older than checkpoint {manager.latest_step()}, the latest")


def read_metadata(manager: ocp.CheckpointManager, number: int) -> dict[str, Any]:
    """The metadata of a checkpoint; raises DamagedError if the checksum does not match."""
    metadata = manager.restore(number, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
    if metadata.pop("checksum") != _checksum_of_json(metadata):
        raise DamagedError("metadata has another checksum than when it was written")
    return metadata


def read_arrays(manager: ocp.CheckpointManager, number: int, item: str, metadata: dict[str, Any], like: Any) -> Any:
    """The NumPy arrays of a checkpoint, which must have the names, shapes and dtypes of `like`.

    Raises DamagedError if they are not as they were written, and InputError, with the first difference, for others.
    """
    restored = _restored(manager, number, item, metadata)
    written, expected = _descriptions(restored), _descriptions(like)
    for name in [*expected, *written]:
        if written.get(name) != expected.get(name):
            found, wanted = written.get(name, "nothing"), expected.get(name, "nothing")
            hint = "set JAX_ENABLE_X64=1" if found == wanted.replace("float32", "float64") else _SAME_SETTINGS
            raise InputError(f"checkpoint {number} holds {name} as {found}, expected {wanted}; {hint}")
    arrays: Any = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(restored))
    return arrays


def check_arrays(manager: ocp.CheckpointManager, number: int) -> None:
    """Raises DamagedError, or one of orbax's errors, if the metadata or arrays of a checkpoint are damaged."""
    metadata = read_metadata(manager, number)
    for item in _checksums(metadata):
        _restored(manager, number, item, metadata)


class _LatestAndBest:
    """Which checkpoints orbax keeps: the best, and the two latest, in case the last one is damaged."""

    def __init__(self, best: Callable[[], int | None]) -> None:
        self._best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        latest = sorted(checkpoint.step for checkpoint in checkpoints)[-2:]
        return [checkpoint.step in (*latest, self._best()) for checkpoint in checkpoints]


def _alone(options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManagerOptions:
    """The options for this process alone: otherwise orbax waits for all processes to do the same."""
    if jax.process_count() > 1:
        here = jax.process_index()
        options.multiprocessing_options = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
        )
    return options


def _restored(manager: ocp.CheckpointManager, number: int, item: str, metadata: dict[str, Any]) -> Any:
    # Given the expected arrays, orbax casts to their dtypes and ignores their shapes.
    restored = manager.restore(number, args=ocp.args.Composite(**{item: ocp.args.StandardRestore()}))[item]
    checksum = _checksum(restored, values_alone="array_checksums" not in metadata)
    if checksum != _checksums(metadata)[item]:  # orbax does not notice flipped bits
        raise DamagedError(f"{item} has another checksum than when it was written")
    return restored


def _checksums(metadata: dict[str, Any]) -> dict[str, int]:
    """The checksum of each tree; earlier versions wrote those of the values alone, under another name."""
    checksums: dict[str, int] = metadata["array_checksums" if "array_checksums" in metadata else "checksums"]
    return checksums


def _checksum(tree: Any, *, values_alone: bool = False) -> int:
    """The checksum of all names, dtypes, shapes and values."""
    checksum = 0 if values_alone else zlib.crc32(json.dumps(_descriptions(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def _descriptions(tree: Any) -> dict[str, str]:
    """The dtype and shape of each array, such as "float32 [3, 4]", by its name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _checksum_of_json(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
