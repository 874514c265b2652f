"""A run from its configuration to its result."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.data.batches import step_indices, steps_through
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import load_dataset
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model
from jaxnets.report import write_report
from jaxnets.training.checkpoint import Checkpoints
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.metrics import Totals
from jaxnets.training.optimizers import make_optimizer, warmup_cosine
from jaxnets.training.progress import Progress
from jaxnets.training.step import create_state, train_step
from jaxnets.training.workdir import Workdir

# A line of metrics is written after so many steps and at the end of an epoch; a checkpoint at the end of an epoch, if
# the last is older than so many seconds, and at the end of the run.
_STEPS_A_LINE = 10
_SECONDS_A_CHECKPOINT = 60


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains as `config` says, leaves the run's files in `workdir`, and returns what stands in its result.json.

    Raises InputError, before anything is written, for a network, an image size or a workdir that will not do, and
    later if the loss is no longer finite.
    """
    started = time.perf_counter()
    recipe = config.recipe
    dataset = load_dataset(config.dataset)
    if recipe.batch_size > len(dataset.train):
        raise InputError(
            f"batch_size={recipe.batch_size}, but {config.dataset} has {len(dataset.train)} training images; "
            "choose a smaller --batch-size"
        )
    preprocessing = Preprocessing(recipe.image_size, dataset.mean, dataset.std)
    model = create_model(config.arch, num_classes=len(dataset.class_names), dtype=jnp.dtype(config.dtype))
    steps = steps_through(recipe.epochs, recipe.batch_size, len(dataset.train))
    warmup_steps = round(recipe.warmup_epochs * len(dataset.train) / recipe.batch_size)
    schedule = warmup_cosine(recipe.learning_rate, steps, warmup_steps)
    optimizer = make_optimizer(recipe.optimizer, schedule, recipe.weight_decay)
    create = partial(create_state, model, optimizer, config.seed, recipe.image_size)
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(create).params))

    train_split = dataset.train.preprocessed(preprocessing)
    test_split = dataset.test.preprocessed(preprocessing)
    files = Workdir.create(workdir, config)
    evaluate = Evaluator(model, preprocessing, recipe.batch_size)
    step = jax.jit(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            preprocessing=preprocessing,
            recipe=recipe,
            seed=config.seed,
        ),
        donate_argnums=0,
    )

    def batch(index: int) -> tuple[Any, Any]:
        indices = step_indices(config.seed, index, recipe.batch_size, len(train_split))
        return train_split.images[indices], train_split.labels[indices]

    with Progress(steps) as progress, Checkpoints(workdir, config, preprocessing, dataset.class_names) as checkpoints:
        progress.say(f"{config.arch}: {num_params:,} parameters, {steps} steps of {recipe.batch_size}; compiling ...")
        compile_started = time.perf_counter()
        state = create()
        compiled_step = step.lower(state, *batch(0)).compile()
        compile_seconds = time.perf_counter() - compile_started
        progress.say(f"compiled in {compile_seconds:.1f} s")

        training_seconds, loop_started, saved = 0.0, time.perf_counter(), time.perf_counter()
        for epoch in range(1, recipe.epochs + 1):
            epoch_started = time.perf_counter()
            epoch_totals, line_totals = Totals(), Totals()
            first, last = (steps_through(e, recipe.batch_size, len(train_split)) for e in (epoch - 1, epoch))
            for index in range(first, last):
                state, sums = compiled_step(state, *batch(index))
                epoch_totals.add(sums)
                line_totals.add(sums)
                if not math.isfinite(line_totals.loss):
                    raise InputError(
                        f"the loss is no longer finite after step {index + 1}; try a smaller --lr than "
                        f"{recipe.learning_rate}"
                    )
                speed = epoch_totals.count / (time.perf_counter() - epoch_started)
                progress.advance(epoch, recipe.epochs, epoch_totals.means(), speed)
                if (index + 1) % _STEPS_A_LINE == 0 or index + 1 == last:
                    metrics = line_totals.means() | {"learning_rate": float(schedule(index))}
                    files.log("train", index + 1, epoch, metrics, images_per_second=speed)
                    line_totals = Totals()
            training_seconds += time.perf_counter() - epoch_started

            probabilities, test = evaluate(state.variables, test_split)
            files.log("test", last, epoch, test, seconds=time.perf_counter() - started)
            left = (time.perf_counter() - loop_started) / epoch * (recipe.epochs - epoch)
            progress.end_epoch(epoch, recipe.epochs, epoch_totals.means(), test, speed, left)
            if epoch == recipe.epochs or time.perf_counter() - saved > _SECONDS_A_CHECKPOINT:
                checkpoints.save(state)
                saved = time.perf_counter()

    device = jax.devices()[0]
    result = {
        "arch": config.arch,
        "dataset": config.dataset,
        "num_params": num_params,
        "epochs": recipe.epochs,
        "steps": steps,
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "test_images": round(test["count"]),
        "train_images_per_second": steps * recipe.batch_size / training_seconds,
        "compile_seconds": compile_seconds,
        "seconds": time.perf_counter() - started,
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
    }
    files.finish(result, test_split, probabilities, dataset.class_names)
    write_report(workdir)
    return result
