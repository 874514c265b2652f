"""Checkpoints of a run, written by orbax: the state, and all that is needed to use it."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.initialization import declaration
from jaxnets.training.config import Config
from jaxnets.training.contents import Contents, TrainedClassifier
from jaxnets.training.state import TrainState

CHECKPOINTS = ("latest", "best")
_FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of a run: the two latest, and the best. Use as a context manager.

    They are written in the background. The number of a checkpoint is the number of steps and tests before it. Without a
    folder, as in processes that write no files, nothing is saved. `complete` is called in `poll`, `wait` and `save` for
    each checkpoint that is complete on the disk, with the number of steps before it and its folder. Raises InputError
    if a checkpoint can't be written.
    """

    def __init__(
        self, workdir: Path | None, contents: Contents, complete: Callable[[int, Path], None] | None = None
    ) -> None:
        self._contents = contents
        self._complete = complete
        self._incomplete: tuple[int, int] | None = None
        self._best: int | None = None
        self._last = time.perf_counter()
        self._folder: Any = None
        self._opened: Any = None
        if workdir is None:
            return
        self._folder = workdir.resolve() / _FOLDER
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(error) from None

    @property
    def seconds_since_last(self) -> float:
        """The time since the last checkpoint began, or since this object was created."""
        return time.perf_counter() - self._last

    @property
    def best(self) -> int | None:
        """The number of the best checkpoint."""
        return self._best

    def last(self) -> Path | None:
        """The folder of the latest complete checkpoint; None if there is none here."""
        self.wait()
        number = self._manager.latest_step() if self._folder else None
        return None if number is None else self._folder / str(number)

    def save(self, number: int, state: TrainState, position: dict[str, Any], *, best: bool = False) -> None:
        """Starts to write `state`, on the host, and the run's `position`; `best` marks it as the best so far."""
        self._last = time.perf_counter()
        if best:
            self._best = number
        if self._folder is None:
            return
        if not all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, np.floating)
        ):
            last = self.last()
            good = f"the last good checkpoint is {last}; " if last else ""
            raise InputError(
                f"the state is not finite after step {int(state.step)} and is not saved; {good}train again in another "
                "--workdir with a smaller --lr or --weight-decay"
            )
        variables, rest = state.variables, _numbered(_rest(state))
        metadata = {**self._contents.to_dict(), "position": position, "best": self._best}
        if number in self._manager.all_steps():
            return  # the same state: a run that was stopped here, and again before its next step
        try:
            _files().write(self._manager, number, {"variables": variables, "training": rest}, metadata)
        except (OSError, ValueError) as error:
            raise self._failure(error) from None
        # orbax begins a checkpoint when the one before is complete.
        self._report()
        self._incomplete = number, int(state.step)

    def poll(self) -> None:
        """Reports a checkpoint that has been completed since the last call."""
        if self._incomplete and self._complete and not self._opened.is_saving_in_progress():
            self._report()

    def _report(self) -> None:
        incomplete, self._incomplete = self._incomplete, None
        if incomplete and self._complete:
            number, step = incomplete
            self._complete(step, self._folder / str(number))

    def restore(self, like: TrainState, say: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state and position, or None without a checkpoint; `like` is a state of the same shapes and types.

        A damaged checkpoint is moved aside, and the one before it is read. Raises InputError if none can be read, and
        for a checkpoint of other classes, data or settings.
        """
        if self._folder is None:
            return None
        files = _files()
        damaged: list[tuple[int, Exception]] = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                metadata = files.read_metadata(self._manager, number)
                self._contents.check_goes_on(metadata)
                variables = files.read_arrays(self._manager, number, "variables", metadata, like.variables)
                rest = files.read_arrays(self._manager, number, "training", metadata, _numbered(_rest(like)))
            except (InputError, MemoryError):
                raise
            except Exception as error:  # orbax and tensorstore raise many types
                damaged.append((number, error))
                continue
            for one, reason in damaged:
                self._move_aside(one, reason, say)
            self._best = metadata["best"]
            return _joined(like, variables, list(rest.values())), metadata["position"]
        if damaged:
            raise InputError(
                f"none of the checkpoints in {self._folder} can be read ({_first_line(damaged[0][1])}); "
                "train again in another workdir"
            )
        return None

    def wait(self) -> None:
        """Waits until all checkpoints are complete on the disk."""
        if self._opened is None:
            return
        try:
            self._opened.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failure(error) from None
        self._report()

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
            if self._opened is not None:
                self._opened.close()

    @property
    def _manager(self) -> Any:
        if self._opened is None:
            self._opened = _files().writer(self._folder, lambda: self.best)
        return self._opened

    def _move_aside(self, number: int, error: Exception, say: Callable[[str], None]) -> None:
        aside = self._folder.parent / "damaged-checkpoints" / str(number)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.move(self._folder / str(number), aside)
        self._manager.reload()
        say(f"warning: checkpoint {number} is damaged ({_first_line(error)}); it is moved to {aside}")

    def _failure(self, error: Exception) -> InputError:
        return InputError(f"a checkpoint can't be written to {self._folder} ({_first_line(error)}); is the disk full?")


def saved_contents(workdir: Path) -> dict[str, Any] | None:
    """The metadata of the latest readable checkpoint; None if there is none."""
    folder = workdir.resolve() / _FOLDER
    if not folder.is_dir():
        return None
    files = _files()
    with files.reader(folder) as manager:
        for number in sorted(manager.all_steps(), reverse=True):
            with suppress(Exception):  # orbax and tensorstore raise many types
                found: dict[str, Any] = files.read_metadata(manager, number)
                return found
    return None


def load_classifier(workdir: Path, which: str = "latest", *, model: nn.Module | None = None) -> TrainedClassifier:
    """The classifier in the "latest" or the "best" checkpoint of a run.

    If `train` was given a `model`, it has to be given here too. Raises InputError if the checkpoint can't be read.
    """
    folder = Path(os.path.abspath(workdir)) / _FOLDER
    if not os.path.isdir(folder):
        raise InputError(f"{workdir} holds no run; give the workdir of experiments.train")
    try:
        return _read_classifier(folder, which, model)
    except InputError as error:
        raise InputError(f"{workdir}: {error}") from None
    except Exception as error:
        # orbax and tensorstore raise many types for a file that is missing, truncated or of another format.
        raise InputError(
            f"{workdir}: its checkpoint is damaged or from another version ({type(error).__name__}: "
            f"{_first_line(error)}); train --resume falls back to the one before, or train again in another workdir"
        ) from None


def _read_classifier(folder: Path, which: str, given: nn.Module | None) -> TrainedClassifier:
    files = _files()
    with files.reader(folder) as manager:
        number = manager.latest_step()
        if number is None:
            raise InputError("no checkpoint was finished; train again in another workdir")
        metadata = files.read_metadata(manager, number)
        if which == "best" and metadata["best"] in manager.all_steps():
            number = metadata["best"]
            metadata = files.read_metadata(manager, number)
        config = Config.from_dict(metadata["config"])
        preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        class_names = tuple(metadata["class_names"])
        trained = metadata["custom"].get("model")
        if trained is not None and given is None:
            raise InputError(f"its network {trained} was given to train(); give it to load_classifier(model=...) too")
        model = config.create_model(len(class_names), given, **metadata["options"])
        side = preprocessing.crop_size
        shapes = declaration(model, side).shapes
        like = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
        variables = files.read_arrays(manager, number, "variables", metadata, like)
    return TrainedClassifier(config, model, jax.device_put(variables), preprocessing, class_names, metadata["options"])


def _files() -> Any:
    # orbax takes as long to import as Flax and optax together; the first step of a run does not wait for it.
    from jaxnets.training import checkpoint_files

    return checkpoint_files


def _rest(state: TrainState) -> TrainState:
    """All of the state that `state.variables` does not hold."""
    if state.ema:
        return state.replace(ema={}, frozen={})  # type: ignore[attr-defined]
    return state.replace(params={}, batch_stats={}, frozen={})  # type: ignore[attr-defined]


def _joined(like: TrainState, variables: Any, rest: list[Any]) -> TrainState:
    state: TrainState = jax.tree.unflatten(jax.tree.structure(_rest(like)), rest)
    return state.replace(ema=like.ema, frozen=like.frozen).with_variables(variables)  # type: ignore[attr-defined]


def _numbered(tree: Any) -> dict[str, Any]:
    """The leaves by their index, independent of the classes that hold them."""
    return {f"{index:05}": leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
