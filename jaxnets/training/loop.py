"""A run from its configuration to its result."""

import math
import time
from collections.abc import Collection
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxnets.data.pipeline import on_device, stacked
from jaxnets.data.sources import Dataset
from jaxnets.errors import InputError
from jaxnets.models.features import head_of
from jaxnets.report import write_report
from jaxnets.training.batch_norm import Recalibration, small_batch_warning
from jaxnets.training.checkpoint import Checkpoints
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.history import History, Position
from jaxnets.training.interruption import Interrupted, Interruption, Vote
from jaxnets.training.metrics_log import MetricsLog, require_tensorboard
from jaxnets.training.parallel import Compiled, Parallel, memory_explained
from jaxnets.training.progress import Progress
from jaxnets.training.setup import Setup, set_up
from jaxnets.training.start import origin_of, saved_or_new
from jaxnets.training.step import train_step
from jaxnets.training.workdir import Workdir

SECONDS_A_CHECKPOINT = 60.0


def train(
    config: Config,
    workdir: Path,
    dataset: Dataset | None = None,
    *,
    parallel: Parallel | None = None,
    resume: bool = False,
    seconds_a_checkpoint: float = SECONDS_A_CHECKPOINT,
    tensorboard: bool = False,
    interruption: Interruption | None = None,
    steps_per_call: int = 1,
) -> dict[str, Any]:
    """Trains as `config` says, leaves the run's files in `workdir`, and returns what stands in its result.json.

    `dataset` is for what has no name or place, such as arrays; otherwise `config.dataset` is loaded. With `resume` a
    run that was stopped goes on as if nothing had happened; without one in `workdir`, a new one begins. The device
    takes `steps_per_call` steps at a time, which spares small networks on fast devices the way to the host;
    checkpoints, and ends that are asked for, wait for them.
    Raises InputError, before anything is written, for a network, an image size, a data set or a workdir that will not
    do, and later if the loss stays infinite; Interrupted where `interruption` asks for an end, when all is saved.
    """
    started = time.perf_counter()
    recipe, parallel, interruption = config.recipe, parallel or Parallel.choose(), interruption or Interruption()
    if steps_per_call < 1:
        raise InputError(f"steps_per_call={steps_per_call}; expected at least 1")
    several = steps_per_call > 1
    parallel.check_agreement(f"{config} {parallel.kind} {resume} {steps_per_call}")
    if tensorboard:
        require_tensorboard()
    files = parallel.on_primary(lambda: Workdir.prepare(workdir, config, resume=resume))
    if finished := parallel.tell(files.result() if files else None):
        if files and not (workdir / "report.html").exists():
            write_report(workdir)
        return finished
    run = set_up(config, dataset, parallel, origin_of(config, workdir, parallel))
    if files:
        files.begin(config, run.dataset.class_names, run.bad_images)

    with ExitStack() as stack:
        stack.enter_context(memory_explained(recipe.batch_size))
        progress = stack.enter_context(Progress(run.steps, quiet=files is None))
        checkpoints = stack.enter_context(Checkpoints(workdir if files else None, run.contents))
        trained = f" ({run.num_trained:,} of them trained)" if run.frozen else ""
        progress.say(
            f"{config.arch}: {run.num_params:,} parameters{trained}, {run.steps} steps of {recipe.batch_size} on "
            f"{len(parallel.devices)} {parallel.devices[0].device_kind} by {parallel.kind}; compiling ..."
        )

        state, position = saved_or_new(run, parallel, checkpoints if resume else None, progress)
        run = run.cache_features(state.variables, parallel)
        progress.start_at(position.step)
        small_batch = small_batch_warning(recipe, len(parallel.devices), has_norm=bool(state.batch_stats))
        for warning in [*config.warnings(), *small_batch]:
            progress.say(warning)

        # Who reads, who keeps the books, who steps, who tests.
        host_batches = run.feed.batches(position.step, run.steps)
        if several:
            host_batches = stacked(host_batches, run.feed.calls(position.step, run.steps, steps_per_call))
        put = partial(parallel.put, several_steps=several)
        batches = stack.enter_context(closing(on_device(host_batches, put)))
        log = parallel.on_primary(lambda: MetricsLog(workdir, position.log_bytes, position.step, tensorboard))
        stack.enter_context(log or nullcontext())
        history = History(position, log, progress, config, run.rates, run.feed.steps_through, checkpoints.last, started)
        asked_to_stop = Vote(interruption, parallel)

        def save(*, best: bool = False) -> None:
            position = history.catch_up()
            checkpoints.save(position.number, parallel.fetch(state), position.to_dict(), best=best)

        def save_before_compiling() -> None:
            # Compiling may take longer than those who ask for an end wait, and nothing interrupts it.
            if interruption.can_save:
                save()
                checkpoints.wait()

        def stop_if_asked(_: int = 0) -> None:
            if asked_to_stop():
                save()
                checkpoints.wait()
                raise Interrupted(interruption.requested)

        def step_of(model: Any, held: Collection[str] = ()) -> Compiled:
            step = partial(
                train_step,
                model=model,
                optimizer=run.optimizer,
                preprocessing=run.inputs,
                recipe=recipe,
                axis_name=parallel.axis_name,
                held=held,
            )
            return parallel.wrap(
                step,
                donate=True,
                several_steps=several,
                compiling=save_before_compiling,
                compiled=history.compiled,
            )

        steps = {"all": step_of(run.model)}
        if recipe.head_epochs:
            steps["head"] = step_of(run.head_model, set(state.params) - {head_of(run.network)})
        evaluate = Evaluator(run.network, run.inputs, recipe.batch_size, parallel, save_before_compiling)
        recalibrate = Recalibration(run.model, run.preprocessing, parallel, save_before_compiling)

        test = None
        for epoch in range(position.epochs_tested + 1, recipe.epochs + 1):
            if history.is_over:
                break
            take_step = steps["head" if epoch <= recipe.head_epochs else "all"]
            history.begin_epoch()
            for count in run.feed.calls(history.position.step, run.feed.steps_through(epoch), steps_per_call):
                batch = history.timed_wait(batches)
                state, sums = take_step(state, batch)
                history.trained(sums, count)
                interruption.can_save = True
                stop_if_asked()
                if checkpoints.seconds_since_last > seconds_a_checkpoint:
                    save()
            history.end_epoch()
            if recipe.precise_batch_norm_images and epoch > recipe.head_epochs:
                state = state.with_batch_stats(recalibrate(state.variables, run.dataset.train, config, stop_if_asked))
            test = evaluate(state.variables, run.test_images, stop_if_asked)
            better = history.tested(test.metrics)
            if better or history.is_over or epoch == recipe.epochs:
                save(best=better)
        checkpoints.wait()
        interruption.can_save = False
        if test is None:  # All was done before, but for the files that come last.
            test = evaluate(state.variables, run.test_images)

    result = _result(config, run, parallel, history.position) | {
        "test_accuracy": test.metrics["accuracy"],
        "test_loss": test.metrics["loss"] if math.isfinite(test.metrics["loss"]) else None,
        "test_images": round(test.metrics["count"]),
        "compile_seconds": sum(step.seconds for step in steps.values()),
        "first_step_seconds": history.first_step_seconds,
        "seconds": history.seconds,
    }
    if files:
        files.finish(result, run.dataset, test, run.test_picture)
        write_report(workdir)
    return result


def _result(config: Config, run: Setup, parallel: Parallel, position: Position) -> dict[str, Any]:
    device = parallel.devices[0]
    return {
        "arch": config.arch,
        "dataset": config.dataset,
        "num_params": run.num_params,
        "num_trained_params": run.num_trained,
        "epochs": position.epochs_tested,
        "steps": position.step,
        "train_images": len(run.dataset.train),
        "bad_images": len(run.bad_images),
        "best_test_accuracy": position.best_accuracy,
        "best_epoch": position.best_epoch,
        "train_images_per_second": position.images / position.training_seconds,
        "training_seconds": position.training_seconds,
        "waiting_for_data_seconds": position.waiting_seconds,
        "device": f"{device.platform}: {device.device_kind}",
        "devices": len(parallel.devices),
        "parallel": parallel.kind,
        "jax": jax.__version__,
        "class_names": list(run.dataset.class_names),
    }
