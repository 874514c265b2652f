"""A run in progress: its state, and what can be done with it: train an epoch, evaluate, save."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxnets.data.pipeline import Batch, stacked, to_device
from jaxnets.models.features import head_of
from jaxnets.training.batch_norm import Recalibration, small_batch_warning
from jaxnets.training.checkpoint import Checkpoints
from jaxnets.training.evaluation import Evaluation, Evaluator
from jaxnets.training.interruption import Interrupted, Interruption, Vote
from jaxnets.training.metrics import TOP5
from jaxnets.training.metrics_log import MetricsLog
from jaxnets.training.parallel import Compiled, Parallel, memory_explained
from jaxnets.training.progress import Progress
from jaxnets.training.run_log import RunLog
from jaxnets.training.setup import Setup
from jaxnets.training.start import saved_or_new
from jaxnets.training.watch import Watch


@dataclass(frozen=True)
class Schedule:
    """When a run checkpoints, how many steps a call takes, and whether TensorBoard's files are written."""

    checkpoint_interval: float
    steps_per_call: int
    tensorboard: bool


class Trainer:
    """A run in progress. Use as a context manager; it saves nothing at its end by itself.

    Without `workdir`, as in processes other than the first, it writes no files and calls no hooks.
    """

    def __init__(
        self,
        run: Setup,
        parallel: Parallel,
        workdir: Path | None,
        interruption: Interruption,
        schedule: Schedule,
        watch: Watch,
        *,
        resume: bool,
        started: float,
    ) -> None:
        self._parallel = parallel
        self._interruption = interruption
        self._schedule = schedule
        self._watch = watch
        self._vote = Vote(interruption, parallel)
        self._hooks = run.custom.hooks if workdir else ()
        with ExitStack() as stack:
            stack.enter_context(memory_explained(run.contents.config.recipe.batch_size))
            progress = stack.enter_context(Progress(run.steps, quiet=workdir is None, further=_shown(run)))
            self._checkpoints = stack.enter_context(
                Checkpoints(workdir, run.contents, self._report_checkpoint if self._hooks else None)
            )
            self.state, position = saved_or_new(run, parallel, self._checkpoints if resume else None, progress)
            self.run = run = run.cache_features(self.state.variables, parallel)
            progress.start_at(position.step)
            self._warn(progress)
            self._batches = stack.enter_context(closing(self._device_batches(position.step)))
            metrics_log = parallel.on_primary(
                lambda: MetricsLog(workdir or Path(), position.log_bytes, position.step, schedule.tensorboard)
            )
            stack.enter_context(metrics_log or nullcontext())
            self._metrics_log = metrics_log
            self.log = RunLog(
                position,
                metrics_log,
                progress,
                run.contents.config,
                run.rates,
                run.feed.steps_through,
                self._checkpoints.last,
                started,
                self._hooks,
                run.layers,
            )
            self._steps = self._compiled_steps()
            size, metrics = run.contents.config.recipe.batch_size, run.custom.metrics
            self._evaluate = Evaluator(run.network, run.inputs, size, parallel, self._save_before_compiling, metrics)
            self._best_val: Evaluation | None = None
            self._recalibrate = Recalibration(run.model, run.preprocessing, parallel, self._save_before_compiling)
            self._stack = stack.pop_all()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    @property
    def compile_seconds(self) -> float:
        """The time that the compilation of the training steps took."""
        return sum(step.seconds for step in self._steps.values())

    def epochs_left(self) -> Iterator[int]:
        """The epochs (from 1) that are not finished, until the recipe's patience is over."""
        for epoch in range(self.log.position.epochs_done + 1, self.run.contents.config.recipe.epochs + 1):
            if self.log.is_over:
                return
            yield epoch

    def train_epoch(self, epoch: int) -> None:
        """Takes the steps of an epoch that are left, and then recalibrates batch normalisation if the recipe asks."""
        recipe, feed = self.run.contents.config.recipe, self.run.feed
        head_alone = epoch <= recipe.head_epochs
        take_step = self._steps["head" if head_alone else "all"]
        self.log.begin_epoch()
        for count in feed.calls(self.log.position.step, feed.steps_through(epoch), self._schedule.steps_per_call):
            batch = self.log.timed_wait(self._batches)
            self.state, sums = take_step(self.state, batch)
            self.log.trained(sums, count)
            self._watch.at(self.log.position.step)
            self._interruption.can_save = True
            self._stop_if_asked()
            self._checkpoints.poll()
            if self._checkpoints.seconds_since_last > self._schedule.checkpoint_interval:
                self.save()
        self.log.end_epoch()
        if recipe.precise_batch_norm_images and not head_alone:
            config, source = self.run.contents.config, self.run.dataset.train
            batch_stats = self._recalibrate(self.state.variables, source, config, self._stop_if_asked)
            self.state = self.state.with_batch_stats(batch_stats)

    def finish_epoch(self, epoch: int) -> None:
        """Evaluates the val part, if there is one, logs it, and saves the network if it is the best or the last."""
        self._interruption.can_save = True  # also if the run resumes here, after the last step of an epoch
        val = None
        if "val" in self.run.evaluated:
            val = self._evaluate(self.state.variables, self.run.evaluated["val"], self._stop_if_asked)
        better = self.log.finished_epoch(None if val is None else val.metrics)
        if better:
            self._best_val = val
        if self._schedule.tensorboard and self.run.contents.config.log_gradients and self._metrics_log is not None:
            self._metrics_log.histograms(self.log.position.step, self._parallel.fetch(self.state.params))
        if val is not None:
            for hook in self._hooks:
                hook.after_val(epoch, val, self.state.variables)
        if better or self.log.is_over or epoch == self.run.contents.config.recipe.epochs:
            self.save(best=better)

    @property
    def judged_epoch(self) -> int:
        """The epoch whose network the run ends with: the best by val, or the last without a val part."""
        return self.log.position.best_epoch or self.log.position.epochs_done

    def judge(self) -> dict[str, Evaluation]:
        """The evaluation of the network of `judged_epoch` on val and, for the first time, on test.

        It is the same for a run that stopped after its last epoch and was resumed.
        """
        self._interruption.can_save = True
        variables, epoch, evaluations = self._judged_variables(), self.judged_epoch, {}
        for part, source in self.run.evaluated.items():
            known = self._best_val if part == "val" else None
            evaluations[part] = known or self._evaluate(variables, source, self._stop_if_asked)
        if "test" in evaluations:
            self.log.tested(epoch, evaluations["test"].metrics)
            for hook in self._hooks:
                hook.after_test(epoch, evaluations["test"], variables)
        return evaluations

    def _judged_variables(self) -> Any:
        if self.judged_epoch == self.log.position.epochs_done:
            return self.state.variables
        like = self._parallel.fetch(self.state.variables)
        best = self._parallel.on_primary(lambda: self._checkpoints.read_best(like))
        return self._parallel.replicate(like if best is None else best)

    def save(self, *, best: bool = False) -> None:
        """Starts to write a checkpoint; `best` marks it as the best so far."""
        position = self.log.catch_up()
        self._checkpoints.save(position.number, self._parallel.fetch(self.state), position.to_dict(), best=best)

    def wait_for_checkpoints(self) -> None:
        """Waits until all checkpoints are on the disk; from then on an interruption has nothing to save."""
        self._checkpoints.wait()
        self._interruption.can_save, self._interruption.saved = False, True

    def _save_before_compiling(self) -> None:
        # Compilation cannot be interrupted, and may take longer than a scheduler waits after SIGTERM.
        if self._interruption.can_save:
            self.save()
            self._checkpoints.wait()

    def _stop_if_asked(self, _: int = 0) -> None:
        if self._vote():
            self.save()
            self._checkpoints.wait()
            self._interruption.saved = True
            raise Interrupted(self._interruption.requested)

    def _report_checkpoint(self, step: int, folder: Path) -> None:
        for hook in self._hooks:
            hook.after_checkpoint(step, folder)

    def _warn(self, progress: Progress) -> None:
        recipe, has_norm = self.run.contents.config.recipe, bool(self.state.batch_stats)
        for warning in small_batch_warning(recipe, len(self._parallel.devices), has_norm=has_norm):
            progress.say(warning)

    def _device_batches(self, first_step: int) -> Any:
        feed, steps_per_call = self.run.feed, self._schedule.steps_per_call
        batches: Iterator[Batch] = feed.batches(first_step, self.run.steps)
        if steps_per_call > 1:
            batches = stacked(batches, feed.calls(first_step, self.run.steps, steps_per_call))
        return to_device(batches, partial(self._parallel.put, several_steps=steps_per_call > 1))

    def _compiled_steps(self) -> dict[str, Compiled]:
        run = self.run
        steps = {"all": self._compiled_step(run.model)}
        if run.contents.config.recipe.head_epochs:
            steps["head"] = self._compiled_step(run.head_model, set(self.state.params) - {head_of(run.network)})
        return steps

    def _compiled_step(self, model: Any, frozen: Collection[str] = ()) -> Compiled:
        return self._parallel.wrap(
            self.run.step_of(model, self._parallel.axis_name, frozen),
            donate=True,
            several_steps=self._schedule.steps_per_call > 1,
            compiling=self._save_before_compiling,
            compiled=self.log.compiled,
        )


def _shown(run: Setup) -> list[str]:
    """The metrics in the progress line; with five classes or fewer, top-5 accuracy is always 1."""
    return [name for name in run.custom.metrics if name != TOP5 or len(run.dataset.class_names) > 5]
