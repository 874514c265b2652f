"""Measures jaxnets in a separate process: python -m jaxnets.benchmarking.worker TASK JSON.

Prints one JSON object. An InputError becomes one line on standard error and exit code 2.
"""

import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxnets.benchmarking.flops import flops_per_image
from jaxnets.benchmarking.machine import (
    arithmetic_ceiling,
    bandwidth_ceiling,
    host_memory_bytes,
    peak_memory_bytes,
    steps_per_second,
)
from jaxnets.data.pipeline import Batch, available_cores
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.contract import option_of
from jaxnets.models.initialization import initial_variables
from jaxnets.models.options import model_with
from jaxnets.models.registry import create_model, family_of
from jaxnets.ops import keep_memory
from jaxnets.training.batch_norm import with_batch_norm
from jaxnets.training.losses import cross_entropy, smoothed_targets
from jaxnets.training.parallel import Parallel, memory_explained
from jaxnets.training.recipe import Recipe
from jaxnets.training.state import create_state
from jaxnets.training.step import train_step

MODES = ("train", "inference")
DTYPES = ("float32", "bfloat16")
PARALLELS = ("jit", "pmap")
CLASSES = 1000
# Small enough to avoid divergence, as steps with non-finite numbers may take a different time.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, AUX_WEIGHT = 1e-3, 0.9, 1e-4, 0.3
_CHECKED_IMAGES = 2
# More than for logits: BatchNorm over few values amplifies rounding errors.
_CHECKED_TRAINING_IMAGES = 8
_PROFILED_STEPS = 3


@dataclass(frozen=True)
class Job:
    """A measurement of a network's training step or inference on batches of `batch_size` images of `image_size` px.

    `options` are those of the network, as JSON has them. It takes about `seconds` after compilation and
    `warm_up_steps`. Raises InputError for invalid values.
    """

    arch: str
    image_size: int
    batch_size: int = 32
    mode: str = "train"
    dtype: str = "float32"
    parallel: str = "jit"
    seconds: float = 2.0
    warm_up_steps: int = 5
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        family_of(self.arch)
        for name, allowed in (("mode", MODES), ("dtype", DTYPES), ("parallel", PARALLELS)):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"{name}={value!r}; expected one of {', '.join(allowed)}")
        for name in ("image_size", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name}={value}; expected a whole number of at least 1")


def main(arguments: list[str]) -> None:
    """Runs a task with a job: machine JSON, weights JSON FOLDER, measure JSON STARTED or profile JSON FOLDER."""
    task, job, *more = arguments
    tasks: dict[str, Callable[..., dict[str, Any]]] = {
        "machine": _machine,
        "weights": _weights,
        "measure": _measure,
        "profile": _profile,
    }
    keep_memory()
    try:
        print(json.dumps(tasks[task](Job(**json.loads(job)), *more)))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _machine(job: Job) -> dict[str, Any]:
    """Measures the limits of the job's devices, and counts the job's operations."""
    flops = flops_per_image(job.arch, job.image_size, job.mode, job.options)
    parallel = Parallel.choose(job.parallel)
    parallel.check_batch_size(job.batch_size)
    # CPU devices share the same cores.
    devices = 1 if parallel.devices[0].platform == "cpu" else len(parallel.devices)
    return {
        "device": parallel.devices[0].device_kind,
        "platform": parallel.devices[0].platform,
        "cores": available_cores(),
        "flops_per_image": flops,
        "arithmetic_ceiling_flops": devices * arithmetic_ceiling(jnp.dtype(job.dtype)),
        "bandwidth_ceiling_bytes": devices * bandwidth_ceiling(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _weights(job: Job, folder: str) -> dict[str, Any]:
    """Writes weights with torchvision's names and images to the folder. Returns our float32 logits and loss."""
    from jaxnets.weights.torchvision import to_torchvision

    model: Any = create_model(job.arch, num_classes=CLASSES)
    random = np.random.default_rng(0)
    variables = _spread(initial_variables(model, jax.random.key(0), job.image_size), random)
    shape = (job.image_size, job.image_size, 3)
    images = random.normal(size=(_CHECKED_IMAGES, *shape)).astype(np.float32)
    training_images = random.normal(size=(_CHECKED_TRAINING_IMAGES, *shape)).astype(np.float32)
    labels = np.arange(_CHECKED_TRAINING_IMAGES) * 101 % CLASSES
    tensors: dict[str, Any] = to_torchvision(job.arch, variables)
    np.savez(Path(folder) / "weights.npz", **tensors)
    np.savez(Path(folder) / "inputs.npz", images=images, training_images=training_images, labels=labels)

    with jax.default_matmul_precision("highest"):
        loss = None
        if job.mode == "train" and not option_of(model, "dropout_rate", 0):
            apply = partial(model.apply, train=True, mutable=["batch_stats", "aux_logits"])
            training_logits, _ = jax.jit(apply)(variables, training_images)
            targets = smoothed_targets(jnp.asarray(labels), CLASSES)
            loss = float(cross_entropy(training_logits, targets).mean())
        if job.mode == "inference":
            from jaxnets.inference import fold

            model, variables, _ = fold(model, variables)
        logits = jax.jit(partial(model.apply, train=False))(variables, images)
    return {"logits": np.asarray(logits).tolist(), "loss": loss}


def _measure(job: Job, started: str) -> dict[str, Any]:
    """Measures images per second. `started` is the time.time() at which this process was started."""
    jax.devices()
    import_memory = host_memory_bytes()
    with memory_explained(job.batch_size):
        step, initial_seconds, compile_seconds = make_step(job)
        jax.block_until_ready(step())
        first_step_seconds = time.time() - float(started)
        jax.block_until_ready([step() for _ in range(job.warm_up_steps - 1)])
        rate = steps_per_second(step, job.seconds)
    return {
        "images_per_second": rate * job.batch_size,
        "step_seconds": 1 / rate,
        "initial_seconds": initial_seconds,
        "compile_seconds": compile_seconds(),
        "first_step_seconds": first_step_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "import_memory_bytes": import_memory,
    }


def _profile(job: Job, folder: str) -> dict[str, Any]:
    with memory_explained(job.batch_size):
        step, _, _ = make_step(job)
        for _ in range(2):
            jax.block_until_ready(step())
        with jax.profiler.trace(folder):
            jax.block_until_ready([step() for _ in range(_PROFILED_STEPS)])
    return {"steps": _PROFILED_STEPS}


# A function that dispatches a step and returns its arrays, the seconds to make the initial state, and a function that
# returns the compile seconds so far.
_Step = tuple[Callable[[], Any], float, Callable[[], float]]


def make_step(job: Job) -> _Step:
    """The step that a job measures."""
    parallel = Parallel.choose(job.parallel)
    parallel.check_batch_size(job.batch_size)
    model: Any = model_with(job.arch, job.options, num_classes=CLASSES, dtype=jnp.dtype(job.dtype))
    return (_training if job.mode == "train" else _inference)(job, parallel, model)


def _training(job: Job, parallel: Parallel, model: Any) -> _Step:
    recipe = Recipe(
        image_size=job.image_size,
        epochs=1,
        batch_size=job.batch_size,
        optimizer="momentum",
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        decay_norms_and_biases=True,  # As torch's SGD does.
        label_smoothing=0.0,
        aux_weight=AUX_WEIGHT,
        schedule="constant",
        warmup_epochs=0.0,
    )
    optimizer = recipe.make_optimizer(recipe.schedule_of(1, job.batch_size))
    function = partial(
        train_step,
        model=with_batch_norm(model, "local", parallel.axis_name),
        optimizer=optimizer,
        preprocessing=Preprocessing(job.image_size, job.image_size),
        recipe=recipe,
        axis_name=parallel.axis_name,
    )
    started = time.perf_counter()
    state = jax.block_until_ready(parallel.replicate(create_state(model, optimizer, 0, job.image_size)))
    initial_seconds = time.perf_counter() - started
    compiled = parallel.wrap(function, donate=True)
    shape = (job.batch_size, job.image_size, job.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = np.arange(job.batch_size, dtype=np.int32) % CLASSES
    batch = parallel.put(Batch(images, labels, np.ones(job.batch_size, bool)))

    def step() -> Any:
        nonlocal state
        state, sums = compiled(state, batch)
        return sums

    return step, initial_seconds, lambda: compiled.seconds


def _inference(job: Job, parallel: Parallel, model: Any) -> _Step:
    from jaxnets.inference import fold, specialised

    started = time.perf_counter()
    variables = initial_variables(model, jax.random.key(0), job.image_size)
    model, variables, _ = fold(model, variables, dtype=jnp.dtype(job.dtype))
    jax.block_until_ready(variables)
    initial_seconds = time.perf_counter() - started

    def classify(variables: Any, images: jax.Array) -> jax.Array:
        logits: jax.Array = model.apply(variables, images, train=False)
        if parallel.axis_name is not None:
            logits = jax.lax.all_gather(logits, parallel.axis_name, tiled=True)
        return logits

    shape = (job.batch_size, job.image_size, job.image_size, 3)
    images = parallel.put(np.random.default_rng(0).normal(size=shape).astype(jnp.dtype(job.dtype)))
    if parallel.axis_name is None:
        started = time.perf_counter()
        run = specialised(classify, variables, images)
        compile_seconds = time.perf_counter() - started
        return lambda: run(images), initial_seconds, lambda: compile_seconds
    compiled = parallel.wrap(classify)
    variables = parallel.replicate(variables)
    return lambda: compiled(variables, images), initial_seconds, lambda: compiled.seconds


def _spread(variables: Any, random: np.random.Generator) -> Any:
    """Random variables for which every layer affects the logits, unlike many initialisations.

    Kernels are drawn as in He et al. 2015; norms and biases differ from 1 and 0.
    """

    def value(name: str, leaf: Any) -> np.ndarray:
        drawn = random.standard_normal(leaf.shape, np.float32)
        if name == "kernel":
            return drawn * np.float32((2 / math.prod(leaf.shape[:-1])) ** 0.5)
        return np.exp(drawn / 4) if name in ("scale", "var") else drawn / 10

    return unflatten_dict({path: value(path[-1], leaf) for path, leaf in flatten_dict(variables).items()})


if __name__ == "__main__":
    main(sys.argv[1:])
