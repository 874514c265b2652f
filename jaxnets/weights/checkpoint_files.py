"""A run's checkpoints as orbax keeps them on the disk: arrays by name, JSON beside them, and checksums of both."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def writer(folder: Path, best: Callable[[], int | None]) -> ocp.CheckpointManager:
    """Writes to a folder that is there, in the background, and keeps the two latest and what `best()` numbers."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_LatestAndBest(best), cleanup_tmp_directories=True, create=False
    )
    return ocp.CheckpointManager(folder, options=_alone(options))


def reader(folder: Path) -> ocp.CheckpointManager:
    """Reads from a folder that is there, and changes nothing."""
    # All of it said, so that orbax has nothing to warn of.
    options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    return ocp.CheckpointManager(folder, options=_alone(options))


def write(manager: ocp.CheckpointManager, number: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Starts to write arrays by items' names, and JSON beside them, with checksums of both."""
    metadata = metadata | {"checksums": {name: _checksum(tree) for name, tree in items.items()}}
    metadata["checksum"] = _checksum_of_json(metadata)
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    manager.save(number, args=ocp.args.Composite(**arrays, metadata=ocp.args.JsonSave(metadata)))


def read_metadata(manager: ocp.CheckpointManager, number: int) -> dict[str, Any]:
    """The JSON of a checkpoint; raises ValueError where it is not what was written."""
    metadata = manager.restore(number, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
    if metadata.pop("checksum") != _checksum_of_json(metadata):
        raise ValueError("the metadata are not those that were written")
    return metadata


def read_arrays(manager: ocp.CheckpointManager, number: int, item: str, metadata: dict[str, Any], like: Any) -> Any:
    """Arrays of the shapes and types of `like`; raises ValueError where they are not what was written."""
    arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    restored = manager.restore(number, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(arrays)}))[item]
    if _checksum(restored) != metadata["checksums"][item]:
        # orbax takes flipped bits and other types as they come.
        raise ValueError(f"the {item} are not those that were written")
    return restored


class _LatestAndBest:
    """Which checkpoints orbax keeps: the best, and two, so that there is one to go back to if the last is damaged."""

    def __init__(self, best: Callable[[], int | None]) -> None:
        self._best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        latest = sorted(checkpoint.step for checkpoint in checkpoints)[-2:]
        return [checkpoint.step in (*latest, self._best()) for checkpoint in checkpoints]


def _alone(options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManagerOptions:
    """The options for this process by itself: orbax would wait for all the others to do the same."""
    if jax.process_count() > 1:
        here = jax.process_index()
        options.multiprocessing_options = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
        )
    return options


def _checksum(tree: Any) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def _checksum_of_json(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
