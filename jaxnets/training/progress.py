"""The progress of a run on standard error: a live bar on a terminal, otherwise one line an epoch."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from tqdm import tqdm

from jaxnets.training.metrics import TOP5

_SECONDS_A_LINE = 30


class Progress:
    """Progress through `steps` steps on standard error. Use as a context manager.

    `further` names the metrics to show beside loss and accuracy; those that are not one number are left out.
    """

    def __init__(self, steps: int, *, quiet: bool = False, further: Sequence[str] = ()) -> None:
        self._quiet = quiet
        self._further = further
        self._live = sys.stderr.isatty() and not quiet
        self._steps = steps
        self._said = self._started = 0.0
        self._speed = 0.0
        self._bar = tqdm(
            total=steps,
            unit="step",
            disable=not self._live,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {remaining} left",
        )

    def start_at(self, step: int) -> None:
        """Starts after `step` steps of an earlier process, which do not count for the speed."""
        self._bar.initial = self._bar.n = self._bar.last_print_n = step

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if not self._quiet:
            self._bar.write(line, file=sys.stderr)

    def advance(self, step: int, epoch: int, epochs: int, metrics: Mapping[str, Any], images_per_second: float) -> None:
        """Counts a step. Shows the epoch's metrics so far: at each step on a terminal, otherwise twice a minute."""
        self._speed = images_per_second
        shown = (
            f"epoch {epoch}/{epochs}, loss {_number(metrics, 'loss', '.3f')}, "
            f"accuracy {_number(metrics, 'accuracy', '.1%')}{self._others(metrics)}, {images_per_second:.0f} images/s"
        )
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()
        now = time.perf_counter()
        if not self._started:
            self._said = self._started = now
            self._first_step = step
        if not self._live and now - self._said > _SECONDS_A_LINE:
            left = (now - self._started) / (step - self._first_step) * (self._steps - step)
            self.say(f"step {step}/{self._steps}, {shown}, {clock(left)} left")
            self._said = now

    def end_epoch(
        self,
        epoch: int,
        epochs: int,
        train: Mapping[str, Any],
        val: Mapping[str, Any] | None,
        seconds_left: float,
    ) -> None:
        """Prints the metrics of an epoch, and of the val part after it if there is one."""
        self._said = time.perf_counter()
        self.say(
            f"epoch {epoch}/{epochs}: train loss {_number(train, 'loss', '.3f')}, "
            f"train accuracy {_number(train, 'accuracy', '.1%')}, {'' if val is None else self._judged('val', val)}"
            f"{self._speed:.0f} images/s, {clock(seconds_left)} left"
        )

    def end_run(self, epoch: int, test: Mapping[str, Any]) -> None:
        """Prints the metrics of the test part, of the network after `epoch`."""
        self.say(f"after epoch {epoch}: {self._judged('test', test).removesuffix(', ')}")

    def _judged(self, part: str, metrics: Mapping[str, Any]) -> str:
        return f"{part} accuracy {_number(metrics, 'accuracy', '.2%')}{self._others(metrics, f'{part} ')}, "

    def _others(self, metrics: Mapping[str, Any], split: str = "") -> str:
        parts = []
        for name in self._further:
            value = metrics.get(name)
            if isinstance(value, float):
                number = f"top-5 accuracy {value:.1%}" if name == TOP5 else f"{name} {value:.4g}"
                parts.append(f", {split}{number}")
        return "".join(parts)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


@contextmanager
def counting(
    description: str, total: int, *, quiet: bool = False
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar on standard error that counts up to `total`; without a terminal, one line twice a minute.

    Yields `done(count)` and `say(line)`.
    """
    live = sys.stderr.isatty() and not quiet
    bar = tqdm(
        total=total,
        desc=description,
        leave=False,
        disable=not live,
        dynamic_ncols=True,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left",
    )
    started = said = time.perf_counter()

    def done(count: int) -> None:
        nonlocal said
        bar.update(count - bar.n)
        now = time.perf_counter()
        if not live and not quiet and now - said > _SECONDS_A_LINE and count < total:
            said = now
            say(f"{description}: {count:,} of {total:,}, {clock((now - started) / count * (total - count))} left")

    def say(line: str) -> None:
        if not quiet:
            bar.write(line, file=sys.stderr)

    with bar:
        yield done, say


def _number(metrics: Mapping[str, Any], name: str, form: str) -> str:
    return format(metrics[name], form) if name in metrics else "unknown"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
