"""Checkpoints of a run, written by orbax: the state, and all that is needed to use it."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.errors import InputError, first_line
from jaxnets.training.config import Config
from jaxnets.training.contents import Contents, TrainedClassifier
from jaxnets.training.state import TrainState
from jaxnets.weights.damage import damage_of
from jaxnets.weights.file_checksums import DamagedError, check_files, write_checksums
from jaxnets.weights.runs import FOLDER, orbax_files, read_run

# To remove a folder that is still being written.
_ATTEMPTS = 20
CHECKPOINTS = ("best", "latest", "intact")


class Checkpoints:
    """The checkpoints of a run: the two latest, and the best. Use as a context manager.

    They are written in the background. The number of a checkpoint is the number of steps and finished epochs before it.
    Without a folder, as in processes that write no files, nothing is saved. `complete` is called in `poll`, `wait` and
    `save` for each checkpoint that is complete on the disk, with the number of steps before it and its folder. Raises
    InputError if a checkpoint can't be written.
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
        self._folder = workdir.resolve() / FOLDER
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
            orbax_files().write(self._manager, number, {"variables": variables, "training": rest}, metadata)
        except (OSError, ValueError) as error:
            raise self._failure(error) from None
        # orbax begins a checkpoint when the one before is complete.
        self._report()
        self._incomplete = number, int(state.step)

    def poll(self) -> None:
        """Reports a checkpoint that has been completed since the last call."""
        if self._incomplete and not self._opened.is_saving_in_progress():
            self._report()

    def _report(self) -> None:
        incomplete, self._incomplete = self._incomplete, None
        if incomplete is None:
            return
        number, step = incomplete
        try:
            write_checksums(self._folder / str(number))
        except (OSError, ValueError) as error:
            raise self._failure(error) from None
        if self._complete:
            self._complete(step, self._folder / str(number))

    def restore(self, like: TrainState, say: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state and position, or None without a checkpoint; `like` is a state of the same shapes and types.

        A damaged checkpoint is moved aside, and the one before it is read. Raises InputError if none can be read, and
        for a checkpoint of other classes, data or settings.
        """
        if self._folder is None:
            return None
        files = orbax_files()
        damaged: list[tuple[int, DamagedError]] = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                check_files(self._folder / str(number))
                metadata = files.read_metadata(self._manager, number)
                self._contents.check_resumes(metadata)
                variables = files.read_arrays(self._manager, number, "variables", metadata, like.variables)
                rest = files.read_arrays(self._manager, number, "training", metadata, _numbered(_rest(like)))
            except Exception as error:  # orbax and tensorstore raise many types
                damaged.append((number, damage_of(error, self._folder / str(number))))
                continue
            for one, reason in damaged:
                self._move_aside(one, reason, say)
            self._best = metadata["best"]
            return _joined(like, variables, list(rest.values())), metadata["position"]
        if damaged:
            raise InputError(
                f"none of the checkpoints in {self._folder} is intact (checkpoint {damaged[0][0]}: {damaged[0][1]}); "
                "train again in another workdir"
            )
        return None

    def read_best(self, like: Any) -> Any:
        """The variables of the best checkpoint; `like` are variables of the same shapes and types.

        Raises InputError if it can't be read.
        """
        self.wait()
        number, files = self._best, orbax_files()
        try:
            check_files(self._folder / str(number))
            metadata = files.read_metadata(self._manager, number)
            return files.read_arrays(self._manager, number, "variables", metadata, like)
        except Exception as error:  # orbax and tensorstore raise many types
            damage = damage_of(error, self._folder / str(number))
            raise InputError(
                f"the best checkpoint, {self._folder / str(number)}, is damaged ({damage}); restore it and resume, or "
                "evaluate the run with --checkpoint intact"
            ) from None

    def wait(self) -> None:
        """Waits until all checkpoints are complete on the disk."""
        if self._opened is None:
            return
        try:
            self._opened.wait_until_finished()
        except (OSError, ValueError) as error:
            self._incomplete = None
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
            self._remove_unfinished()

    @property
    def _manager(self) -> Any:
        if self._opened is None:
            self._opened = orbax_files().writer(self._folder, lambda: self.best)
        return self._opened

    def _remove_unfinished(self) -> None:
        """Removes what is left of a checkpoint that could not be written: a full disk needs the space."""
        for _ in range(_ATTEMPTS if self._folder else 0):
            unfinished = list(self._folder.glob("*.orbax-checkpoint-tmp"))
            if not unfinished:
                return
            for path in unfinished:
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.1)  # other arrays may still be being written

    def _move_aside(self, number: int, damage: DamagedError, say: Callable[[str], None]) -> None:
        aside = self._folder.parent / "damaged-checkpoints" / str(number)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.move(self._folder / str(number), aside)
        self._manager.reload()
        say(f"warning: checkpoint {number} is damaged ({damage}); it is moved to {aside}")

    def _failure(self, error: Exception) -> InputError:
        full = "No space left" in str(error) or "quota" in str(error)
        advice = "free some space, and resume" if full else "resume when it can be written"
        return InputError(f"a checkpoint can't be written to {self._folder} ({first_line(error)}); {advice}")


def load_classifier(workdir: Path, which: str = "best", *, model: nn.Module | None = None) -> TrainedClassifier:
    """The classifier in the "best" checkpoint of a run, or in the "latest" if there is no best or if that is asked for.

    "intact" is the newest checkpoint that is not damaged; a line on standard error names it, and what is damaged.
    If `train` was given a `model`, it has to be given here too. Raises InputError if the checkpoint can't be read.
    """
    run = read_run(workdir, which, model)
    try:
        config = Config.from_dict(run.settings)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{workdir}: its checkpoint is from another version ({first_line(error)})") from None
    origin = run.origin
    return TrainedClassifier(
        config, run.model, run.variables, origin.preprocessing, origin.class_names, origin.options, run.fingerprints
    )


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
