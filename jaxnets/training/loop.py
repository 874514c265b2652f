"""A run from its configuration to its result."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.batches import steps_through, training_slots
from jaxnets.data.datasets import load_dataset
from jaxnets.data.pipeline import Batch, Preprocessed, RandomCrops, hold_if_small, on_device, read_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Dataset, Source
from jaxnets.data.verification import verify
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model
from jaxnets.report import write_report
from jaxnets.training.checkpoint import Checkpoints
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.metrics import Totals
from jaxnets.training.optimizers import make_optimizer, warmup_cosine
from jaxnets.training.progress import Progress, counting
from jaxnets.training.recipes import Recipe
from jaxnets.training.step import create_state, train_step
from jaxnets.training.workdir import Workdir, check_unused

# A line of metrics is written after so many steps and at the end of an epoch; a checkpoint at the end of an epoch, if
# the last is older than so many seconds, and at the end of the run.
_STEPS_A_LINE = 10
_SECONDS_A_CHECKPOINT = 60


def training_source(
    source: Source, preprocessing: Preprocessing, recipe: Recipe, done: Callable[[int], None] = lambda count: None
) -> Source | Preprocessed:
    """The source as the pipeline reads it: held in memory if it is small and its crops are always the same."""
    return source if recipe.min_crop_area else hold_if_small(source, preprocessing, done)


def training_batches(
    source: Source | Preprocessed, preprocessing: Preprocessing, recipe: Recipe, seed: int, steps: Iterable[int]
) -> Iterator[Batch]:
    """The host batches of training steps, counted from 0."""
    plan = (training_slots(seed, step, recipe.batch_size, len(source)) for step in steps)
    crops = RandomCrops(seed, recipe.min_crop_area) if recipe.min_crop_area else None
    return read_batches(source, preprocessing, plan, crops)


def train(config: Config, workdir: Path, dataset: Dataset | None = None) -> dict[str, Any]:
    """Trains as `config` says, leaves the run's files in `workdir`, and returns what stands in its result.json.

    `dataset` is for what has no name or place, such as arrays; otherwise `config.dataset` is loaded.
    Raises InputError, before anything is written, for a network, an image size, a data set or a workdir that will not
    do, and later if the loss is no longer finite.
    """
    started = time.perf_counter()
    recipe = config.recipe
    if dataset is None:
        dataset = load_dataset(config.dataset, data_dir=config.data_dir, test_share=config.test_share)
    preprocessing = recipe.preprocessing(dataset.mean, dataset.std)
    model = create_model(config.arch, num_classes=len(dataset.class_names), dtype=jnp.dtype(config.dtype))
    images = jax.ShapeDtypeStruct((1, recipe.image_size, recipe.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    check_unused(workdir)
    with counting("checking images", len(dataset.train) + len(dataset.test)) as (done, say):
        dataset, bad_images = verify(dataset, config.on_bad_image, done, say)
    if recipe.batch_size > len(dataset.train):
        raise InputError(
            f"batch_size={recipe.batch_size}, but {config.dataset} has {len(dataset.train)} training images; "
            "choose a smaller --batch-size"
        )
    steps = steps_through(recipe.epochs, recipe.batch_size, len(dataset.train))
    warmup_steps = round(recipe.warmup_epochs * len(dataset.train) / recipe.batch_size)
    schedule = warmup_cosine(recipe.learning_rate, steps, warmup_steps)
    optimizer = make_optimizer(recipe.optimizer, schedule, recipe.weight_decay)

    with counting("decoding training images", len(dataset.train)) as (done, _):
        train_images = training_source(dataset.train, preprocessing, recipe, done)
    with counting("decoding test images", len(dataset.test)) as (done, _):
        test_images = hold_if_small(dataset.test, preprocessing, done)
    files = Workdir.create(workdir, config, dataset.class_names, bad_images)
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
    batches = on_device(training_batches(train_images, preprocessing, recipe, config.seed, range(steps)))
    with (
        Progress(steps) as progress,
        Checkpoints(workdir, config, preprocessing, dataset.class_names) as checkpoints,
        closing(batches),
    ):
        progress.say(f"{config.arch}: {num_params:,} parameters, {steps} steps of {recipe.batch_size}; compiling ...")
        compile_started = time.perf_counter()
        state = create_state(model, optimizer, config.seed, recipe.image_size)
        compiled_step = step.lower(state, *_shapes(recipe)).compile()
        compile_seconds = time.perf_counter() - compile_started
        progress.say(f"compiled in {compile_seconds:.1f} s")

        training_seconds = waiting_seconds = 0.0
        loop_started = saved = time.perf_counter()
        for epoch in range(1, recipe.epochs + 1):
            epoch_started = time.perf_counter()
            epoch_totals, line_totals = Totals(), Totals()
            first, last = (steps_through(e, recipe.batch_size, len(dataset.train)) for e in (epoch - 1, epoch))
            for index in range(first, last):
                asked = time.perf_counter()
                batch = next(batches)
                waiting_seconds += time.perf_counter() - asked
                state, sums = compiled_step(state, batch.images, batch.labels)
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

            test = evaluate(state.variables, test_images)
            files.log("test", last, epoch, test.metrics, seconds=time.perf_counter() - started)
            left = (time.perf_counter() - loop_started) / epoch * (recipe.epochs - epoch)
            progress.end_epoch(epoch, recipe.epochs, epoch_totals.means(), test.metrics, speed, left)
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
        "train_images": len(dataset.train),
        "bad_images": len(bad_images),
        "test_accuracy": test.metrics["accuracy"],
        "test_loss": test.metrics["loss"],
        "test_images": round(test.metrics["count"]),
        "train_images_per_second": steps * recipe.batch_size / training_seconds,
        "compile_seconds": compile_seconds,
        "waiting_for_data_seconds": waiting_seconds,
        "seconds": time.perf_counter() - started,
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
    }

    def picture(index: int) -> np.ndarray:
        if isinstance(test_images, Preprocessed):
            return test_images.images[index]
        return preprocessing(dataset.test[index].image)

    files.finish(result, dataset, test, picture)
    write_report(workdir)
    return result


def _shapes(recipe: Recipe) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    images = (recipe.batch_size, recipe.image_size, recipe.image_size, 3)
    return jax.ShapeDtypeStruct(images, jnp.uint8), jax.ShapeDtypeStruct(images[:1], jnp.int32)
