"""What a run has seen so far, and what it tells of it while it trains."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnets.data.pipeline import Batch
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.metrics import Sums, Totals
from jaxnets.training.metrics_log import MetricsLog
from jaxnets.training.progress import Progress

# Steps in a row that are not finite, after which a run is given up.
_MOST_SKIPPED = 10


@dataclass
class Position:
    """Where a run stands, in numbers that JSON holds exactly; a checkpoint carries it.

    `line` and `epoch` are the sums since the last line of the log and since the epoch began.
    """

    step: int = 0
    epochs_tested: int = 0
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
        """Counts steps and tests: no two states of a run have the same."""
        return self.step + self.epochs_tested

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        """The position from what `to_dict` made of it."""
        return cls(**{**values, "line": Totals(**values["line"]), "epoch": Totals(**values["epoch"])})


class History:
    """Reads the metrics of a step while the next one runs, adds them up, logs them and shows them.

    Without a log, as in processes that write no files, only adds them up.
    """

    def __init__(
        self,
        position: Position,
        log: MetricsLog | None,
        progress: Progress,
        config: Config,
        rates: np.ndarray,
        steps_through: Callable[[int], int],
        last_checkpoint: Callable[[], Path | None],
        started: float,
    ) -> None:
        self.position = position
        self._log = log
        self._progress = progress
        self._recipe = config.recipe
        self._log_every = config.log_every
        self._rates = rates
        self._steps_through = steps_through
        self._last_checkpoint = last_checkpoint
        self._unread: tuple[Sums, int] | None = None
        self._watcher = ThreadPoolExecutor(1, "steps")
        self._finished: Future[float] | None = None
        self._first: Future[float] | None = None
        self._started_up = False
        self._seconds_before = position.seconds
        self._started, self._epoch_started = started, time.perf_counter()
        self._epoch_images = 0
        self._training_since: float | None = None

    @property
    def seconds(self) -> float:
        """Since the run began, not counting where it stood still."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def first_step_seconds(self) -> float | None:
        """From the call of `train` to its first finished step, compiling included; None where none was taken."""
        return None if self._first is None else self._first.result() - self._started

    def trained(self, sums: Sums, steps: int = 1) -> None:
        """Notes the sums of a step, or of some [steps], which need not be ready, and reads those of the call before."""
        unread, self._unread = self._unread, (sums, steps)
        self._finished = self._watcher.submit(_when_ready, sums)
        self._first = self._first or self._finished
        if unread is not None:
            self._read(*unread)

    def catch_up(self) -> Position:
        """Reads what is unread; the position is then that of the state."""
        unread, self._unread = self._unread, None
        if unread is not None:
            self._read(*unread)
        self.position.seconds = self.seconds
        if self._training_since is not None:
            now = time.perf_counter()
            self.position.training_seconds += now - self._training_since
            self._training_since = now
        if self._log is not None:
            self.position.log_bytes = self._log.bytes_on_disk()
        return self.position

    def _read(self, device_sums: Sums, steps: int) -> None:
        sums = jax.device_get({name: array.addressable_data(0) for name, array in device_sums.items()})
        for step in range(steps):
            self._read_step({name: np.reshape(values, (steps, -1))[step, 0] for name, values in sums.items()})

    def _read_step(self, sums: dict[str, Any]) -> None:
        at, recipe = self.position, self._recipe
        if not self._started_up:
            self._started_up = True
            self._progress.say(f"first step finished after {self.first_step_seconds:.1f} s")
        at.step += 1
        at.line.add(sums)
        at.epoch.add(sums)
        if sums["skipped_in_a_row"] >= _MOST_SKIPPED:
            kept = self._last_checkpoint()
            good = f"the last good checkpoint is {kept}; " if kept else ""
            raise InputError(
                f"{_MOST_SKIPPED} steps in a row, up to step {at.step}, were not finite, and were left out; {good}"
                f"train again in another --workdir with a smaller --lr than {recipe.learning_rate}, or --clip-norm 1"
            )
        if sums["skipped"]:
            at.skipped += 1
            self._progress.say(f"warning: step {at.step} was not finite; it is left out")
        self._epoch_images += recipe.batch_size
        at.images += recipe.batch_size
        now = time.perf_counter()
        speed = self._epoch_images / (now - self._epoch_started)
        epoch = at.epochs_tested + 1
        self._progress.advance(at.step, epoch, recipe.epochs, at.epoch.means(), speed)
        if at.step % self._log_every == 0 or at.step == self._steps_through(epoch):
            if self._log is not None:
                # The optimiser has not counted the steps that were left out.
                rate = {"learning_rate": float(self._rates[at.step - 1 - at.skipped]), "images_per_second": speed}
                self._log.add("train", at.step, epoch, at.line.means() | rate)
            at.line = Totals()

    def compiled(self, seconds: float) -> None:
        """Notes that the step was compiled, which is no part of the training's speed."""
        self._epoch_started += seconds
        if self._training_since is not None:
            self._training_since += seconds
        self._progress.say(f"compiled in {seconds:.1f} s")

    def timed_wait(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time that is lost to waiting for it is noted: while no step is under way."""
        lost_since = time.perf_counter()
        batch = next(batches)
        came = time.perf_counter()
        if self._finished is not None:
            lost_since = max(lost_since, self._finished.result() if self._finished.done() else came)
        self.position.waiting_seconds += max(came - lost_since, 0.0)
        return batch

    def begin_epoch(self) -> None:
        """Notes that training goes on."""
        self._epoch_started = self._training_since = time.perf_counter()
        self._epoch_images = 0

    def end_epoch(self) -> None:
        """Notes that an epoch's steps are done."""
        self.catch_up()
        self._training_since = None

    def tested(self, metrics: dict[str, float]) -> bool:
        """Notes what a test brought; whether it is the best so far: by accuracy, then by loss."""
        at = self.position
        accuracy, loss = metrics["accuracy"], metrics["loss"]
        loss = loss if math.isfinite(loss) else sys.float_info.max
        better = (accuracy, -loss) > (at.best_accuracy, -at.best_loss)
        if better:
            at.best_accuracy, at.best_loss, at.best_epoch = accuracy, loss, at.epochs_tested + 1
        train = at.epoch.means()
        at.epochs_tested += 1
        at.epoch = Totals()
        if self._log is not None:
            self._log.add("test", at.step, at.epochs_tested, metrics | {"seconds": self.seconds})
        left = (time.perf_counter() - self._epoch_started) * (self._recipe.epochs - at.epochs_tested)
        self._progress.end_epoch(at.epochs_tested, self._recipe.epochs, train, metrics, left)
        return better

    @property
    def is_over(self) -> bool:
        """Whether the last `patience_epochs` have brought nothing better."""
        patience, at = self._recipe.patience_epochs, self.position
        return bool(patience) and at.epochs_tested - at.best_epoch >= patience


def _when_ready(sums: Sums) -> float:
    jax.block_until_ready(sums)
    return time.perf_counter()
