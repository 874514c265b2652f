"""Where a run starts from: where it stopped, weights that others trained, or nothing."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxnets.data.sources import Dataset
from jaxnets.data.verification import verify
from jaxnets.errors import InputError
from jaxnets.pretrained import describe, starting_variables
from jaxnets.training.checkpoint import Checkpoints
from jaxnets.training.config import Config
from jaxnets.training.contents import check_classes, check_images
from jaxnets.training.parallel import Parallel
from jaxnets.training.progress import Progress, counting
from jaxnets.training.run_log import Position
from jaxnets.training.setup import Setup
from jaxnets.training.state import TrainState, create_state
from jaxnets.weights.origin import Origin
from jaxnets.weights.runs import read_contents


def origin_of(config: Config, workdir: Path | None, parallel: Parallel) -> Origin | None:
    """The origin of the weights that the run starts or started from; the same in all processes."""
    if config.weights is None:
        return None
    found = parallel.on_primary(
        lambda: (
            (workdir and read_contents(workdir))
            or asdict(describe(config.arch, config.weights or "DEFAULT", config.weights_key))
        )
    )
    return Origin.from_dict(parallel.broadcast(found))


def saved_or_new(
    run: Setup, parallel: Parallel, checkpoints: Checkpoints | None, progress: Progress
) -> tuple[TrainState, Position]:
    """The state and the run's position: as they were saved in `checkpoints`, or new; the same in all processes.

    Raises InputError if a weight or another number of the state is not finite.
    """
    config = run.contents.config
    recipe = config.recipe
    new = partial(
        create_state,
        run.network,
        run.optimizer,
        config.seed,
        recipe.image_size,
        ema=recipe.ema_decay > 0,
        frozen=run.frozen,
        declared=run.declared,
    )
    state = new()
    saved = parallel.on_primary(lambda: checkpoints.restore(state, progress.say)) if checkpoints else None
    if config.weights and not parallel.broadcast(saved is not None):
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        start = partial(
            starting_variables,
            run.network,
            config.arch,
            config.weights,
            run.dataset.class_names,
            key,
            weights_key=config.weights_key,
            say=progress.say,
        )
        variables = parallel.on_primary(lambda: _fitting(start(), run))
        state = new(variables=variables) if variables else state
    state, position = saved or (state, Position().to_dict())
    source = config.weights if config.weights and not saved else f"{'the checkpoint' if saved else config.arch}"
    parallel.on_primary(lambda: _check_finite(state, source))
    return parallel.replicate(state), Position.from_dict(parallel.broadcast(position))


def check_start(run: Setup, parallel: Parallel, *, resume: bool) -> None:
    """Raises InputError if the initial weights of a new run do not fit it; makes a state, and forgets it."""
    if run.contents.config.weights and not resume:
        with Progress(run.steps, quiet=not parallel.is_primary) as progress:
            saved_or_new(run, parallel, None, progress)


def check_finished(config: Config, dataset: Dataset | None, workdir: Path, result: Mapping[str, Any]) -> None:
    """Raises InputError unless the data are those of the finished run in `workdir`, which has this `result`.

    `dataset` takes the place of the data set that `config` names. Without a checkpoint, only classes are compared.
    """
    try:
        dataset = dataset or config.load_dataset()
        check_classes(result["class_names"], dataset.class_names)
        before = read_contents(workdir)
        if before is None:
            return
        if result.get("bad_images"):  # they are not part of the fingerprints
            with counting("checking images", sum(map(len, dataset.parts.values()))) as (done, say):
                dataset, _ = verify(dataset, config.on_bad_image, done, say)
        check_images(before["fingerprints"], {part: source.fingerprint() for part, source in dataset.parts.items()})
    except InputError as error:
        raise InputError(f"{workdir} holds a finished run, and its data must be the same: {error}") from None


def _fitting(variables: Any, run: Setup) -> Any:
    """The initial weights; raises InputError if they have other shapes than the network, which options can change."""
    shapes, config = flatten_dict(run.declared.shapes), run.contents.config
    theirs = flatten_dict(variables)
    for path in sorted(shapes.keys() | theirs.keys(), key=lambda path: (path[0] != "params", path)):
        ours, weights = (tree[path].shape if path in tree else "missing" for tree in (shapes, theirs))
        if ours != weights:
            options = ", ".join(f"{name}={value}" for name, value in config.network_options.items())
            raise InputError(
                f"{config.weights} does not fit {config.arch}{' with ' * bool(options)}{options}: "
                f"{'/'.join(path)} is {weights} in the weights, and {ours} in the network; change the options, or "
                "start without --weights"
            )
    return variables


def _check_finite(state: TrainState, source: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InputError(f"{source} has values that are not finite in {name}; start from other weights")
