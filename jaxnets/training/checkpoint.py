"""Checkpoints by orbax: what a run has learnt, with all that is needed to use it."""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.initialization import declaration
from jaxnets.training.config import Config
from jaxnets.training.contents import Contents, TrainedClassifier
from jaxnets.training.state import TrainState

CHECKPOINTS = ("latest", "best")
_FOLDER = "checkpoints"


class Checkpoints:
    """A run's checkpoints: the two latest are kept, and the best. Written in the background. Use as a context manager.

    A checkpoint's number counts what the run has done: steps and tests. Without a folder nothing is kept, as in the
    processes that write no files. Raises InputError where one can't be written.
    """

    def __init__(self, workdir: Path | None, contents: Contents) -> None:
        self._contents = contents
        self._best: int | None = None
        self._last = time.perf_counter()
        self._manager: Any = None
        if workdir is None:
            return
        self._folder = workdir.resolve() / _FOLDER
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(error) from None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(self), cleanup_tmp_directories=True, create=False
        )
        _alone(options)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def seconds_since_last(self) -> float:
        """Since the last checkpoint was begun, or since there could be one."""
        return time.perf_counter() - self._last

    @property
    def best(self) -> int | None:
        """The number of the best checkpoint."""
        return self._best

    def last(self) -> Path | None:
        """The folder of the latest checkpoint that is on the disk as a whole; None if there is none here."""
        self.wait()
        number = self._manager.latest_step() if self._manager is not None else None
        return None if number is None else self._folder / str(number)

    def save(self, number: int, state: TrainState, position: dict[str, Any], *, best: bool = False) -> None:
        """Starts to write `state`, in this process's memory, and where the run stands; `best` keeps it as the best."""
        self._last = time.perf_counter()
        if best:
            self._best = number
        if self._manager is None:
            return
        if not all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, np.floating)
        ):
            kept = self.last()
            good = f"the last good checkpoint is {kept}; " if kept else ""
            raise InputError(
                f"the state is not finite after step {int(state.step)}, and is not saved; {good}train again in another "
                "--workdir with a smaller --lr or --weight-decay"
            )
        variables, rest = state.variables, _numbered(_rest(state))
        checksums = {"variables": _checksum(variables), "training": _checksum(rest)}
        metadata = {**self._contents.to_dict(), "position": position, "best": self._best, "checksums": checksums}
        metadata["checksum"] = _checksum_of_json(metadata)
        if number in self._manager.all_steps():
            return  # the same state: a run that was stopped here, and again before its next step
        try:
            self._manager.save(
                number,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    training=ocp.args.StandardSave(rest),
                    metadata=ocp.args.JsonSave(metadata),
                ),
            )
        except (OSError, ValueError) as error:
            raise self._failure(error) from None

    def restore(self, like: TrainState, say: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state and where the run stood, or None if there is none; `like` gives its shapes and types.

        A damaged checkpoint is moved aside, and the one before it taken. Raises InputError where none can be read, and
        for one of other classes, data or settings.
        """
        if self._manager is None:
            return None
        damaged: list[tuple[int, Exception]] = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                metadata = _read_metadata(self._manager, number)
                self._contents.check_goes_on(metadata)
                variables = _read(self._manager, number, "variables", metadata, like.variables)
                rest = _read(self._manager, number, "training", metadata, _numbered(_rest(like)))
            except (InputError, MemoryError):
                raise
            except Exception as error:  # orbax and tensorstore raise many types
                damaged.append((number, error))
                continue
            for one, reason in damaged:
                self._put_aside(one, reason, say)
            self._best = metadata["best"]
            return _joined(like, variables, list(rest.values())), metadata["position"]
        if damaged:
            raise InputError(
                f"none of the checkpoints in {self._folder} can be read ({_first_line(damaged[0][1])}); "
                "train again in another workdir"
            )
        return None

    def wait(self) -> None:
        """Returns when all is on the disk."""
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failure(error) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except InputError:
            if error is None:
                raise
        finally:
            if self._manager is not None:
                self._manager.close()

    def _put_aside(self, number: int, error: Exception, say: Callable[[str], None]) -> None:
        aside = self._folder.parent / "damaged-checkpoints" / str(number)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.move(self._folder / str(number), aside)
        self._manager.reload()
        say(f"warning: checkpoint {number} is damaged ({_first_line(error)}); it is moved to {aside}")

    def _failure(self, error: Exception) -> InputError:
        return InputError(f"a checkpoint can't be written to {self._folder} ({_first_line(error)}); is the disk full?")


class _LatestAndBest:
    """Which checkpoints orbax keeps: the best, and two, so that there is one to go back to if the last is damaged."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        latest = sorted(checkpoint.step for checkpoint in checkpoints)[-2:]
        return [checkpoint.step in (*latest, self._checkpoints.best) for checkpoint in checkpoints]


def _alone(options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManagerOptions:
    """The options for this process by itself: orbax would wait for all the others to do the same."""
    if jax.process_count() > 1:
        here = jax.process_index()
        options.multiprocessing_options = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
        )
    return options


def _read_only() -> ocp.CheckpointManagerOptions:
    # All of it said, so that orbax has nothing to warn of.
    return _alone(ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0))


def saved_contents(workdir: Path) -> dict[str, Any] | None:
    """What stands beside the numbers in the latest checkpoint that can be read; None if there is none."""
    folder = workdir.resolve() / _FOLDER
    if not folder.is_dir():
        return None
    with ocp.CheckpointManager(folder, options=_read_only()) as manager:
        for number in sorted(manager.all_steps(), reverse=True):
            with suppress(Exception):  # orbax and tensorstore raise many types
                return _read_metadata(manager, number)
    return None


def load_classifier(workdir: Path, which: str = "latest") -> TrainedClassifier:
    """The "latest" or the "best" checkpoint of a run, without what only training needs.

    Raises InputError where it can't be read.
    """
    folder = Path(os.path.abspath(workdir)) / _FOLDER
    if not os.path.isdir(folder):
        raise InputError(f"{workdir} holds no run; give the workdir of experiments.train")
    try:
        return _read_classifier(folder, which)
    except InputError as error:
        raise InputError(f"{workdir}: {error}") from None
    except Exception as error:
        # orbax and tensorstore raise many types for a file that is missing, cut short or of another form.
        raise InputError(
            f"{workdir}: its checkpoint is damaged or from another version ({type(error).__name__}: "
            f"{_first_line(error)}); train --resume falls back to the one before, or train again in another workdir"
        ) from None


def _read_classifier(folder: Path, which: str) -> TrainedClassifier:
    with ocp.CheckpointManager(folder, options=_read_only()) as manager:
        number = manager.latest_step()
        if number is None:
            raise InputError("no checkpoint was finished; train again in another workdir")
        metadata = _read_metadata(manager, number)
        if which == "best" and metadata["best"] in manager.all_steps():
            number = metadata["best"]
            metadata = _read_metadata(manager, number)
        config = Config.from_dict(metadata["config"])
        preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        class_names = tuple(metadata["class_names"])
        model = config.create_model(len(class_names), **metadata["options"])
        side = preprocessing.crop_size
        shapes = declaration(model, side).shapes
        like = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
        variables = _read(manager, number, "variables", metadata, like)
    return TrainedClassifier(config, model, jax.device_put(variables), preprocessing, class_names, metadata["options"])


def _read_metadata(manager: ocp.CheckpointManager, number: int) -> dict[str, Any]:
    metadata = manager.restore(number, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
    if metadata.pop("checksum") != _checksum_of_json(metadata):
        raise ValueError("the metadata are not those that were written")
    return metadata


def _read(manager: ocp.CheckpointManager, number: int, item: str, metadata: dict[str, Any], like: Any) -> Any:
    """Arrays of the shapes and types of `like`; raises ValueError where they are not what was written."""
    arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    restored = manager.restore(number, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(arrays)}))[item]
    if _checksum(restored) != metadata["checksums"][item]:
        # orbax takes flipped bits and other types as they come.
        raise ValueError(f"the {item} are not those that were written")
    return restored


def _checksum(tree: Any) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def _checksum_of_json(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _rest(state: TrainState) -> TrainState:
    """What `state.variables` does not hold."""
    if state.average:
        return state.replace(average={}, frozen={})  # type: ignore[attr-defined]
    return state.replace(params={}, batch_stats={}, frozen={})  # type: ignore[attr-defined]


def _joined(like: TrainState, variables: Any, rest: list[Any]) -> TrainState:
    state: TrainState = jax.tree.unflatten(jax.tree.structure(_rest(like)), rest)
    return state.replace(average=like.average, frozen=like.frozen).with_variables(variables)  # type: ignore[attr-defined]


def _numbered(tree: Any) -> dict[str, Any]:
    """The leaves by their place, whatever classes hold them."""
    return {f"{place:05}": leaf for place, leaf in enumerate(jax.tree.leaves(tree))}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
