"""Where a study measures: its data, its training runs, and what it has measured before."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnets.data.pipeline import Preprocessed, to_device
from jaxnets.data.sources import Dataset, Source
from jaxnets.models.features import head_of
from jaxnets.models.initialization import initial_variables
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluation, Evaluator
from jaxnets.training.gradients import NORMS
from jaxnets.training.metrics import Totals
from jaxnets.training.parallel import Compiled, Parallel
from jaxnets.training.setup import Setup, set_up
from jaxnets.training.state import create_state
from jaxnets.transfer import join, split


@dataclass(frozen=True)
class Trained:
    """A trained network, and the curves of its training: a number for each epoch.

    `losses` and `accuracies` are the means over the training batches of an epoch. `gradient_norms` [steps, L] are those
    of `layers` before each step, with `log_gradients` in the configuration.
    """

    run: Setup
    variables: Any
    losses: list[float]
    accuracies: list[float]
    val_losses: list[float]
    val_accuracies: list[float]
    gradient_norms: np.ndarray
    evaluate: Callable[[Any, Source | Preprocessed], Evaluation] = field(repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers of `gradient_norms`."""
        return self.run.layers

    def on(self, part: str) -> Evaluation:
        """The evaluation of the trained network on a part: "train", "val" or "test"."""
        return self.evaluate(self.variables, self.run.dataset.parts[part])


class Lab:
    """The place of one study with one seed: its data set, its training runs, and the file of its measurements.

    Training compiles once for all seeds. What `kept` measures is in the file, and is not measured again by a study that
    was stopped. `note` says how far a measurement is.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        file: Path | None = None,
        programs: "Programs | None" = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.note = note
        self._file = file
        self._kept: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.exists() else {}
        self._programs = programs or Programs()

    def kept(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value of `measure()`, JSON, which is written down and computed once for each seed."""
        if name not in self._kept:
            # Through JSON, so that a resumed study sees the same as one that was not stopped.
            self._kept[name] = json.loads(json.dumps(measure()))
            if self._file is not None:
                partial_file = self._file.with_suffix(".partial")
                partial_file.write_text(json.dumps(self._kept))
                partial_file.replace(self._file)
        return self._kept[name]

    def train(
        self,
        config: Config,
        dataset: Dataset | None = None,
        *,
        start: Any = None,
        judge_epochs: bool = True,
    ) -> Trained:
        """Trains a network with the lab's seed, as `jaxnets.training.train` does, but without files.

        Unless `judge_epochs`, val images are not looked at. `start` are variables to start from, with a new head; the
        configuration's `weights` are then only their name, and images are normalised as the data set says.
        """
        config = replace(config, seed=self.seed)
        return self._programs.train(config, dataset or self.dataset, start, judge_epochs, self.note)


class Programs:
    """Compiled training steps and evaluations, each by the configuration it is for, without seed and learning rate."""

    def __init__(self) -> None:
        self.parallel = Parallel.choose("jit")  # one device: small batches, whose statistics are those of the batch
        self._compiled: dict[Any, tuple[Compiled, Evaluator]] = {}

    def train(
        self,
        config: Config,
        dataset: Dataset,
        start: Any,
        judge_epochs: bool,
        note: Callable[[str], None],
    ) -> Trained:
        """Trains as `Lab.train` says."""
        parallel, recipe = self.parallel, config.recipe
        note(config.arch)
        run = _with_rate_in_state(set_up(_at_rate_one(config), dataset, parallel, quiet=True), config)
        step, evaluate = self._of(run)
        state = create_state(
            run.network,
            run.optimizer,
            config.seed,
            recipe.image_size,
            variables=None if start is None else _with_new_head(run, start, config.seed),
            frozen=run.frozen,
            declared=run.declared,
        )
        state = parallel.replicate(state)
        curves: dict[str, list[float]] = {"losses": [], "accuracies": [], "val_losses": [], "val_accuracies": []}
        norms: list[np.ndarray] = []
        batches = to_device(run.feed.batches(0, run.steps), parallel.put)
        for epoch in range(1, recipe.epochs + 1):
            sums = []
            for _ in range(run.feed.steps_through(epoch) - run.feed.steps_through(epoch - 1)):
                state, of_step = step(state, next(batches))
                sums.append(of_step)
            totals = Totals()
            for of_step in parallel.fetch(sums):
                if NORMS in of_step:
                    norms.append(np.asarray(of_step.pop(NORMS)))
                totals.add(of_step)
            means = totals.means()
            # An epoch in which each step was skipped has no loss.
            curves["losses"].append(means.get("loss", float("nan")))
            curves["accuracies"].append(means.get("accuracy", float("nan")))
            if judge_epochs and "val" in run.evaluated:
                val = evaluate(state.variables, run.evaluated["val"]).metrics
                curves["val_losses"].append(val["loss"])
                curves["val_accuracies"].append(val["accuracy"])
            note(f"{config.arch}, epoch {epoch} of {recipe.epochs}")
        return Trained(run, state.variables, **curves, gradient_norms=np.array(norms), evaluate=evaluate)

    def _of(self, run: Setup) -> tuple[Compiled, Evaluator]:
        config = run.contents.config
        key = (repr(replace(_at_rate_one(config), seed=0)), run.steps, run.dataset.class_names, run.inputs)
        if key not in self._compiled:
            parallel = self.parallel
            step = parallel.wrap(run.step_of(run.model, parallel.axis_name), donate=True)
            self._compiled[key] = step, Evaluator(run.network, run.inputs, config.recipe.batch_size, parallel)
        return self._compiled[key]


def _at_rate_one(config: Config) -> Config:
    return replace(config, recipe=replace(config.recipe, learning_rate=1.0))


def _with_rate_in_state(run: Setup, config: Config) -> Setup:
    """The run `config`, from one with the peak learning rate 1.

    The rate is in the optimiser's state, so that runs at different rates share a program. Updates are proportional to
    it in all optimisers.
    """
    rate = config.recipe.learning_rate

    def update(updates: Any, factor: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), updates), factor

    times_rate = optax.GradientTransformation(lambda params: jnp.asarray(rate), update)
    return replace(
        run,
        contents=replace(run.contents, config=config),
        optimizer=optax.chain(run.optimizer, times_rate),
        rates=None if run.rates is None else rate * run.rates,
    )


def _with_new_head(run: Setup, variables: Any, seed: int) -> dict[str, Any]:
    """The variables with the head that the network starts with."""
    head = [head_of(run.network)]
    initial = initial_variables(run.network, jax.random.key(seed), run.inputs.crop_size, run.declared)
    return join(split(variables, head)[1], split(initial, head)[0])
