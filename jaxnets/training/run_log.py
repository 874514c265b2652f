"""The progress of a run so far, and its log: metrics.jsonl and the progress line."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnets.data.pipeline import Batch
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.gradients import NORMS
from jaxnets.training.hooks import Hook
from jaxnets.training.metrics import Sums, Totals
from jaxnets.training.metrics_log import MetricsLog
from jaxnets.training.progress import Progress

# The run stops after this number of consecutive steps that are not finite.
_MAX_SKIPPED = 10


@dataclass
class Position:
    """Where a run stands, in numbers that JSON holds exactly; each checkpoint holds it.

    `line` and `epoch` are the sums since the last line of the log and since the start of the epoch.
    """

    step: int = 0
    epochs_done: int = 0
    best_accuracy: float = -1.0
    best_loss: float = sys.float_info.max
    best_epoch: int = 0
    line: Totals = field(default_factory=Totals)
    epoch: Totals = field(default_factory=Totals)
    log_bytes: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    waiting_seconds: float = 0.0
    images: int = 0
    skipped: int = 0

    @property
    def number(self) -> int:
        """The number of steps and finished epochs, which differs for any two states of a run."""
        return self.step + self.epochs_done

    def to_dict(self) -> dict[str, Any]:
        """The position as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        """The position from the result of `to_dict`."""
        return cls(**{**values, "line": Totals(**values["line"]), "epoch": Totals(**values["epoch"])})


class RunLog:
    """Reads the metrics of a step while the next one runs, adds them up, logs and shows them, and calls the hooks.

    Without a `metrics_log`, as in processes other than the first, it only adds them up. `rates` are the learning rates
    [steps], or None if they are not known. `layers` are the names of the layers whose gradients are logged.
    """

    def __init__(
        self,
        position: Position,
        metrics_log: MetricsLog | None,
        progress: Progress,
        config: Config,
        rates: np.ndarray | None,
        steps_through: Callable[[int], int],
        last_checkpoint: Callable[[], Path | None],
        started: float,
        hooks: Sequence[Hook] = (),
        layers: Sequence[str] = (),
    ) -> None:
        self.position = position
        self._metrics_log = metrics_log
        self._progress = progress
        self._recipe = config.recipe
        self._log_every = config.log_every
        self._rates = rates
        self._steps_through = steps_through
        self._last_checkpoint = last_checkpoint
        self._hooks = hooks
        self._layers = layers
        self._unread: tuple[Sums, int] | None = None
        self._watcher = ThreadPoolExecutor(1, "steps")
        self._finished: Future[float] | None = None
        self._first: Future[float] | None = None
        self._read_any = False
        self._seconds_before = position.seconds
        self._started, self._epoch_started = started, time.perf_counter()
        self._epoch_images = 0
        self._training_since: float | None = None

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between a stop and a resume."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def first_step_seconds(self) -> float | None:
        """From the call of `train` to the end of its first step, with compilation; None if no step ran."""
        return None if self._first is None else self._first.result() - self._started

    def trained(self, sums: Sums, steps: int = 1) -> None:
        """Takes the sums of one step, or stacked ones of several [steps], and reads those of the call before.

        The sums may still be in computation.
        """
        unread, self._unread = self._unread, (sums, steps)
        self._finished = self._watcher.submit(_when_ready, sums)
        self._first = self._first or self._finished
        if unread is not None:
            self._read(*unread)

    def catch_up(self) -> Position:
        """Reads all sums; the position then matches the state."""
        unread, self._unread = self._unread, None
        if unread is not None:
            self._read(*unread)
        self.position.seconds = self.seconds
        if self._training_since is not None:
            now = time.perf_counter()
            self.position.training_seconds += now - self._training_since
            self._training_since = now
        if self._metrics_log is not None:
            self.position.log_bytes = self._metrics_log.bytes_on_disk()
        return self.position

    def _read(self, device_sums: Sums, steps: int) -> None:
        sums = jax.device_get({name: array.addressable_data(0) for name, array in device_sums.items()})
        for step in range(steps):
            # The axis of steps is there if a call takes several.
            self._read_step({name: value[step] if self._stacked(sums) else value for name, value in sums.items()})

    @staticmethod
    def _stacked(sums: dict[str, np.ndarray]) -> bool:
        return np.ndim(sums["count"]) > 0

    def _read_step(self, sums: dict[str, Any]) -> None:
        at, recipe = self.position, self._recipe
        if not self._read_any:
            self._read_any = True
            self._progress.say(f"first step finished after {self.first_step_seconds:.1f} s")
        norms = sums.pop(NORMS, None)
        at.step += 1
        at.line.add(sums)
        at.epoch.add(sums)
        if sums["skipped_in_a_row"] >= _MAX_SKIPPED:
            last = self._last_checkpoint()
            good = f"the last good checkpoint is {last}; " if last else ""
            advice = (
                f"train again in another --workdir with a smaller --lr than {recipe.learning_rate}, or --clip-norm 1"
            )
            if at.skipped + 1 == at.step:  # the learning rate has had no effect
                advice = "the weights or inputs overflow; check the data's mean and std, or start from other --weights"
            raise InputError(
                f"{_MAX_SKIPPED} steps in a row, up to step {at.step}, were not finite and were skipped; {good}{advice}"
            )
        if sums["skipped"]:
            at.skipped += 1
            self._progress.say(f"warning: step {at.step} was not finite and was skipped")
        self._epoch_images += recipe.batch_size
        at.images += recipe.batch_size
        speed = self._epoch_images / (time.perf_counter() - self._epoch_started)
        epoch = at.epochs_done + 1
        self._progress.advance(at.step, epoch, recipe.epochs, at.epoch.means(), speed)
        if at.step % self._log_every == 0 or at.step == self._steps_through(epoch):
            if self._metrics_log is not None:
                further: dict[str, Any] = {"images_per_second": speed}
                if norms is not None:
                    further[NORMS] = dict(zip(self._layers, norms.tolist(), strict=True))
                if self._rates is not None:
                    # The optimiser does not count the steps that were skipped.
                    further = {"learning_rate": float(self._rates[at.step - 1 - at.skipped])} | further
                self._metrics_log.add("train", at.step, epoch, at.line.means() | further)
            at.line = Totals()
        if self._hooks:
            alone = Totals()
            alone.add(sums)
            for hook in self._hooks:
                hook.after_step(at.step, alone.means())

    def compiled(self, seconds: float) -> None:
        """Excludes the compilation of the step from the training's speed."""
        self._epoch_started += seconds
        if self._training_since is not None:
            self._training_since += seconds
        self._progress.say(f"compiled in {seconds:.1f} s")

    def timed_wait(self, batches: Iterator[Batch]) -> Batch:
        """The next batch. The time of waiting for it counts as lost while no step runs."""
        lost_since = time.perf_counter()
        batch = next(batches)
        came = time.perf_counter()
        if self._finished is not None:
            lost_since = max(lost_since, self._finished.result() if self._finished.done() else came)
        self.position.waiting_seconds += max(came - lost_since, 0.0)
        return batch

    def begin_epoch(self) -> None:
        """Starts the clock of an epoch's training."""
        self._epoch_started = self._training_since = time.perf_counter()
        self._epoch_images = 0

    def end_epoch(self) -> None:
        """Stops the clock of an epoch's training."""
        self.catch_up()
        self._training_since = None

    def finished_epoch(self, val: dict[str, Any] | None) -> bool:
        """Logs the metrics of the val part, if there is one, after an epoch.

        Returns whether they are the best so far, by accuracy, then by loss.
        """
        at, better = self.position, False
        if val is not None:
            accuracy, loss = val["accuracy"], val["loss"]
            loss = loss if math.isfinite(loss) else sys.float_info.max
            better = (accuracy, -loss) > (at.best_accuracy, -at.best_loss)
            if better:
                at.best_accuracy, at.best_loss, at.best_epoch = accuracy, loss, at.epochs_done + 1
        train = at.epoch.means()
        at.epochs_done += 1
        at.epoch = Totals()
        if self._metrics_log is not None and val is not None:
            self._metrics_log.add("val", at.step, at.epochs_done, val | {"seconds": self.seconds})
        left = (time.perf_counter() - self._epoch_started) * (self._recipe.epochs - at.epochs_done)
        self._progress.end_epoch(at.epochs_done, self._recipe.epochs, train, val, left)
        return better

    def tested(self, epoch: int, metrics: dict[str, Any]) -> None:
        """Logs the metrics of the test part, of the network after `epoch`."""
        if self._metrics_log is not None:
            self._metrics_log.add("test", self._steps_through(epoch), epoch, metrics | {"seconds": self.seconds})
        self._progress.end_run(epoch, metrics)

    @property
    def is_over(self) -> bool:
        """Whether the last `patience_epochs` have brought no better val."""
        patience, at = self._recipe.patience_epochs, self.position
        return bool(patience) and at.epochs_done - at.best_epoch >= patience


def _when_ready(sums: Sums) -> float:
    jax.block_until_ready(sums)
    return time.perf_counter()
