"""`train()`: a run from its configuration to its result."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax

from jaxnets.data.sources import Dataset
from jaxnets.errors import InputError, first_line
from jaxnets.evaluation import calibration, class_scores
from jaxnets.report import write_report
from jaxnets.training.config import Config
from jaxnets.training.custom import Custom, check_parts
from jaxnets.training.evaluation import Evaluation
from jaxnets.training.hooks import Hook
from jaxnets.training.interruption import Interrupted, Interruption
from jaxnets.training.metrics import Metric, all_metrics
from jaxnets.training.metrics_log import json_value, require_tensorboard
from jaxnets.training.parallel import Parallel
from jaxnets.training.setup import set_up
from jaxnets.training.start import check_finished, check_start, origin_of
from jaxnets.training.start_lines import start_lines
from jaxnets.training.trainer import Schedule, Trainer
from jaxnets.training.watch import Watch
from jaxnets.training.workdir import Workdir

CHECKPOINT_INTERVAL = 60.0


def train(
    config: Config,
    workdir: Path | str,
    dataset: Dataset | None = None,
    *,
    model: nn.Module | None = None,
    optimizer: optax.GradientTransformation | None = None,
    metrics: Mapping[str, Metric] | None = None,
    hooks: Sequence[Hook] = (),
    parallel: Parallel | None = None,
    resume: bool = False,
    checkpoint_interval: float = CHECKPOINT_INTERVAL,
    tensorboard: bool = False,
    interruption: Interruption | None = None,
    steps_per_call: int = 1,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Trains a classifier as `config` says, writes the files of the run to `workdir`, and returns its result.json.

    - `dataset` takes the place of the data set that `config` names; the run then has its name. Its parts are used as
      they are: without a val part the run trains on all training images, and its last network counts.
    - `model` takes the place of the network `config.arch`, which is then only the name in the result.
    - `optimizer` takes the place of the recipe's optimiser, learning rate, schedule and weight decay.
    - `metrics` are functions of logits [N, K] and labels [N] that return [N] or [N, ...], for every part. Their
      means over images are in metrics.jsonl, in the progress line (if they are single numbers) and in the result.
    - `hooks` are called in process 0 after steps, evaluations and checkpoints.
    - `resume` continues the run in `workdir` from its last checkpoint, or starts it if there is none. The continued run
      must be given the same model, metrics and optimiser; their class, names and state sizes are checked.
    - `checkpoint_interval` is the time between checkpoints [seconds].
    - `steps_per_call` is the number of steps that the device takes without the host, which helps small networks on fast
      devices; checkpoints and interruptions wait for the end of a call.
    - `dry_run` ends the run before its first step, after all checks; nothing is written, and the result is empty.

    Raises InputError before it writes anything if the input is invalid, and later if the loss or the gradients stay
    infinite; raises Interrupted after saving the state when `interruption` asks it to stop.
    """
    started, workdir = time.perf_counter(), Path(workdir)
    parallel, interruption = parallel or Parallel.choose(), interruption or Interruption()
    if steps_per_call < 1:
        raise InputError(f"steps_per_call={steps_per_call}; expected at least 1")
    if not checkpoint_interval >= 0:
        raise InputError(f"checkpoint_interval={checkpoint_interval}; expected a number of seconds, at least 0")
    if tensorboard:
        require_tensorboard()
    if dataset is not None:
        config = replace(config, dataset=dataset.name)
    check_parts(metrics, hooks)
    custom = Custom(model, optimizer, all_metrics(metrics), hooks)
    schedule = Schedule(checkpoint_interval, steps_per_call, tensorboard)
    with Watch(parallel) as watch, ExitStack() as stack:
        parallel.check_agreement(f"{config} {parallel.kind} {resume} {steps_per_call} {list(custom.metrics)}")
        files: Workdir | None = parallel.on_primary(lambda: Workdir.prepare(workdir, config, resume=resume))
        stack.enter_context(files or nullcontext())
        if finished := parallel.broadcast(parallel.on_primary(lambda: files.result() if files else None)):
            parallel.on_primary(lambda: check_finished(config, dataset, workdir, finished))
            if parallel.is_primary:
                print(f"the run in {workdir} is finished already; this is its result", file=sys.stderr)
            if files and not dry_run and not _is_reported(workdir):
                write_report(workdir)
            return finished
        run = set_up(config, dataset, parallel, origin_of(config, workdir, parallel), custom)
        if parallel.is_primary:
            print("\n".join(start_lines(run, parallel, workdir)), file=sys.stderr)
        if dry_run:
            check_start(run, parallel, resume=resume)
            return {}
        if parallel.is_primary:
            print("compiling ...", file=sys.stderr)
        if files:
            files.begin(config, run.dataset.class_names, run.bad_images)

        folder = workdir if files else None
        try:
            with Trainer(
                run, parallel, folder, interruption, schedule, watch, resume=resume, started=started
            ) as trainer:
                for epoch in trainer.epochs_left():
                    trainer.train_epoch(epoch)
                    trainer.finish_epoch(epoch)
                evaluations = trainer.judge()
                trainer.wait_for_checkpoints()
        except Interrupted:
            # Only a process that got the signal itself is sure to end in time.
            if files and interruption.requested is not None:
                _report_so_far(workdir)
            raise

        result = _result(trainer, parallel, evaluations)
        if files:
            files.finish(result, run.dataset, evaluations[run.dataset.judged_on], run.picture)
            write_report(workdir)
        return result


def _is_reported(workdir: Path) -> bool:
    """Whether the report is that of the finished run, not of an interruption before."""
    report = workdir / "report.html"
    return report.exists() and report.stat().st_mtime >= (workdir / "result.json").stat().st_mtime


def _report_so_far(workdir: Path) -> None:
    """Writes the report of an interrupted run; why it fails, if it does, is a warning."""
    try:
        write_report(workdir)
    except Exception as error:
        print(f"warning: report.html is not written: {first_line(error)}", file=sys.stderr)


def _result(trainer: Trainer, parallel: Parallel, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    run, log, position = trainer.run, trainer.log, trainer.log.position
    device, names = parallel.devices[0], run.dataset.class_names
    judged: dict[str, Any] = {"test_accuracy": None}
    for part, evaluation in evaluations.items():
        judged[f"{part}_images"] = round(evaluation.metrics["count"])
        values = {name: json_value(value) for name, value in evaluation.metrics.items() if name != "count"}
        scores = class_scores(evaluation.labels, evaluation.predicted, len(names))
        values |= {
            "balanced_accuracy": float(scores.balanced_accuracy),
            "expected_calibration_error": calibration(evaluation.confidence, evaluation.right).expected_error,
            **{f"macro_{name}": float(scores.macro(name)) for name in ("precision", "recall", "f1")},
            "per_class": scores.per_class(names),
        }
        judged |= {f"{part}_{name}": value for name, value in values.items()}
    return {
        "arch": run.contents.config.arch,
        "dataset": run.contents.config.dataset,
        "num_params": run.num_params,
        "num_trained_params": run.num_trained,
        "epochs": position.epochs_done,
        "steps": position.step,
        "train_images": len(run.dataset.train),
        "bad_images": sum(not image.used for image in run.bad_images),
        "blemished_images": sum(image.used for image in run.bad_images),
        "best_val_accuracy": position.best_accuracy if "val" in evaluations else None,
        "best_epoch": trainer.judged_epoch,
        "judged_on": run.dataset.judged_on,
        "train_images_per_second": position.images / position.training_seconds,
        "training_seconds": position.training_seconds,
        "waiting_for_data_seconds": position.waiting_seconds,
        "device": f"{device.platform}: {device.device_kind}",
        "devices": len(parallel.devices),
        "parallel": parallel.kind,
        "jax": jax.__version__,
        "class_names": list(names),
        **judged,
        "compile_seconds": trainer.compile_seconds,
        "first_step_seconds": log.first_step_seconds,
        "seconds": log.seconds,
    }
