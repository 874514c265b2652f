"""Checkpoints by orbax: what a run has learnt, with all that is needed to use it."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model
from jaxnets.training.config import Config
from jaxnets.training.step import TrainState

_FOLDER = "checkpoints"


@dataclass(frozen=True)
class TrainedClassifier:
    """A network with its weights, the preprocessing that they were trained with, and the names of the classes."""

    config: Config
    model: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raises InputError unless a data set's classes are those that this classifier was trained on."""
        if tuple(class_names) == self.class_names:
            return
        pairs = zip_longest(self.class_names, class_names)
        index, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        there, trained = ("missing" if name is None else repr(name) for name in (theirs, ours))
        raise InputError(
            f"the data set has other classes than the classifier ({len(class_names)} and {len(self.class_names)}): "
            f"class {index} is {there}, in training it was {trained}; give the data set that it was trained on"
        )


class Checkpoints:
    """Writes a run's checkpoints, in the background; only the latest is kept. Use as a context manager."""

    def __init__(
        self, workdir: Path, config: Config, preprocessing: Preprocessing, class_names: tuple[str, ...]
    ) -> None:
        self._metadata = {
            "config": asdict(config),
            "preprocessing": asdict(preprocessing),
            "class_names": list(class_names),
        }
        self._folder = workdir.resolve() / _FOLDER
        self._manager = ocp.CheckpointManager(self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=1))

    def save(self, state: TrainState) -> None:
        """Starts to write `state`; returns as soon as it may change again. Raises InputError if it can't be written."""
        try:
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(state.variables),
                    optimizer=ocp.args.StandardSave({"opt_state": state.opt_state, "step": state.step}),
                    metadata=ocp.args.JsonSave(self._metadata),
                ),
            )
        except (OSError, ValueError) as error:
            raise self._failure(error) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as failure:
            if error is None:
                raise self._failure(failure) from None
        finally:
            self._manager.close()

    def _failure(self, error: Exception) -> InputError:
        return InputError(f"a checkpoint can't be written to {self._folder} ({_first_line(error)}); is the disk full?")


def load_classifier(workdir: Path) -> TrainedClassifier:
    """The latest checkpoint of a run, without what only training needs. Raises InputError where none can be read."""
    folder = Path(os.path.abspath(workdir)) / _FOLDER
    if not os.path.isdir(folder):
        raise InputError(f"{workdir} holds no run; give the workdir of experiments.train")
    try:
        return _read_classifier(folder)
    except InputError as error:
        raise InputError(f"{workdir}: {error}") from None
    except Exception as error:
        # orbax and tensorstore raise many types for a file that is missing, cut short or of another form.
        raise InputError(
            f"{workdir}: its checkpoint is damaged or from another version ({type(error).__name__}: "
            f"{_first_line(error)}); train again in another workdir"
        ) from None


def _read_classifier(folder: Path) -> TrainedClassifier:
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = manager.latest_step()
        if step is None:
            raise InputError("no checkpoint was finished; train again in another workdir")
        metadata = manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
        config = Config.from_dict(metadata["config"])
        values = metadata["preprocessing"]
        preprocessing = Preprocessing(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        class_names = tuple(metadata["class_names"])
        model = create_model(config.arch, num_classes=len(class_names), dtype=jnp.dtype(config.dtype))
        side = preprocessing.crop_size
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))
        like = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
        restored = manager.restore(step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(like)))
    return TrainedClassifier(config, model, restored["variables"], preprocessing, class_names)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
